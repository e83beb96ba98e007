"""Neuron groups of a checkpoint of which nothing but names and shapes is known."""

from __future__ import annotations

from collections.abc import Mapping

from hf_mhe.neurons.group import NeuronGroup
from hf_mhe.neurons.layout import ROWS
from hf_mhe.neurons.model.weight import AsStored
from hf_mhe.neurons.reasons import size_refusal
from hf_mhe.neurons.source import Source, StoredTensor


def groups_by_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[NeuronGroup], dict[str, str]]:
    """Each tensor of two or more dimensions as (rows, all the rest), kind "unknown", role "hidden"; and the rest."""
    groups: list[NeuronGroup] = []
    skipped: dict[str, str] = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        n, d = shape[0], 1
        for length in shape[1:]:
            d *= length
        reason = size_refusal(n, d)
        if reason is not None:
            skipped[name] = reason
            continue
        module = name.removesuffix(".weight")
        source = Source(None, module, (name,), (shape,), AsStored(name), (StoredTensor(name),))
        groups.append(NeuronGroup(module, "unknown", "hidden", n, d, (name,), (), module, ROWS, source))
    return groups, skipped

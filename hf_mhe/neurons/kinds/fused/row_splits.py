"""The split of every fused layer of a model: by the entry of its module's class, else by the rules, in their order."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hf_mhe.neurons.kinds.fused import gated, state_space, transformers_attention
from hf_mhe.neurons.kinds.fused.attention import unfused
from hf_mhe.neurons.kinds.fused.by_source import by_source
from hf_mhe.neurons.kinds.fused.diffusers_attention import diffusers_attention
from hf_mhe.neurons.kinds.fused.split import SPLITTERS, RowSplit, Splitter
from hf_mhe.neurons.kinds.registry import lookup
from hf_mhe.neurons.model.unwrap import bare

ENTRIES = (gated, state_space, transformers_attention)
"""The files with entries for single classes; importing them fills the table."""

RULES: tuple[Splitter, ...] = (diffusers_attention, by_source, unfused)
"""For modules without an entry. Where two rules speak of one layer, the first counts: what a library documents of its
own modules comes before what their code is read to do, and that before what the sizes add up to."""


def row_splits(root: nn.Module) -> dict[int, RowSplit]:
    """The split of every layer that has one, by the id of the layer's module."""
    found: dict[int, RowSplit] = {}
    for module in root.modules():
        for child, row_split in _of(module).items():
            layer = getattr(module, child, None)
            if isinstance(layer, nn.Module):
                found[id(bare(layer))] = row_split
    return found


def _of(module: nn.Module) -> Mapping[str, RowSplit]:
    entry = lookup(SPLITTERS, module)
    found: dict[str, RowSplit] = {}
    try:
        if entry is not None:
            return entry(module)
        for rule in RULES:
            for child, row_split in rule(module).items():
                found.setdefault(child, row_split)
    except (AttributeError, ZeroDivisionError):
        # Another release of transformers names the sizes otherwise: see Note [Fused projections].
        return {}
    return found

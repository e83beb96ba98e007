"""Which neuron groups of a model a config weights, found once, before anything is trained."""

from __future__ import annotations

from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, neuron_groups
from hf_mhe.neurons.untrained import check_asked
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.messages import nothing_left


def bind_groups(model: nn.Module, config: MHEConfig) -> list[NeuronGroup]:
    """The groups whose role has a weight above 0, frozen ones too: they may be unfrozen later.

    Raises:
        MHEError: none of them trains now, or a pattern of `include` asks for quantized layers alone.
    """
    found = neuron_groups(
        model, include=config.include, exclude=config.exclude, output=config.output, adapters=config.adapters
    )
    check_asked(found, config.include)
    weighted = [group for group in found if config.weight(group.role) > 0]
    if not any(group.requires_grad for group in weighted):
        raise MHEError(nothing_left(model, found, weighted, config))
    return weighted

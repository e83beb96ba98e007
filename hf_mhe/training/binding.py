"""Which neuron groups of a model a config weights, found once, before anything is trained."""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, neuron_groups
from hf_mhe.neurons.untrained import check_asked
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.diagnosis import speaks
from hf_mhe.training.messages import nothing_left, roles_without_groups


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
    for message in roles_without_groups(model, found, config):
        _warn_once(model, message)
    return weighted


# What has been said of a model: a Trainer binds it when it is made, and again for each training.
_said: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def _warn_once(model: nn.Module, message: str) -> None:
    said = _said.setdefault(model, set())
    if message not in said:
        said.add(message)
        if speaks():
            warnings.warn(message, UserWarning, stacklevel=4)

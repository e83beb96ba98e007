"""Which neuron groups of a model a config weights, found once, before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, neuron_groups
from hf_mhe.neurons.untrained import check_asked, never_trains
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.diagnosis import speaks
from hf_mhe.training.engines.dtensor.fsdp2 import as_updated
from hf_mhe.training.engines.refuse import refuse_parameter
from hf_mhe.training.messages import nothing_left, roles_without_groups
from hf_mhe.training.terms import trained


def bind_groups(model: nn.Module, config: MHEConfig) -> list[NeuronGroup]:
    """The groups whose role has a weight above 0, frozen ones too: they may be unfrozen later.

    Where all of them are frozen, a warning says that there is no penalty until then.

    Raises:
        MHEError: there are none, or none that can ever train, or a pattern of `include` asks for quantized layers
            alone, or a parameter is sharded in a way that is not supported.
    """
    found = neuron_groups(
        model, include=config.include, exclude=config.exclude, output=config.output, adapters=config.adapters
    )
    check_asked(found, config.include)
    weighted = [group for group in found if config.weight(group.role) > 0]
    if all(never_trains(group) for group in weighted):
        raise MHEError(nothing_left(model, found, weighted, config))
    named = [(group.name, tensor) for group in weighted for tensor in group.tensors()]
    parameters = as_updated(model, [tensor for _, tensor in named])
    for (name, _), parameter in zip(named, parameters, strict=True):
        refuse_parameter(name, parameter)
    for message in roles_without_groups(model, found, config):
        warn_once(model, message)
    if not any(group.requires_grad for group in weighted):
        why = nothing_left(model, found, weighted, config)
        warn_once(model, f"there is no penalty until a layer is unfrozen: {why}")
    return weighted


# What has been said of a model: a Trainer binds it when it is made, and again for each training.
_said: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def warn_once(model: nn.Module, message: str) -> None:
    """Say something of a model that was not said before."""
    said = _said.setdefault(model, set())
    if message not in said:
        said.add(message)
        if speaks():
            warnings.warn(message, UserWarning, stacklevel=4)


def trained_as_updated(model: nn.Module, groups: Iterable[NeuronGroup]) -> list[Tensor]:
    """The tensors of groups that the optimizer may have, as it has them."""
    return as_updated(model, trained(groups))

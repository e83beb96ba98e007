"""Which neuron groups of a model a config weights, found once, before anything is trained.

Note [Neurons that do not compete]
Spread neurons are no gain where alike ones are no loss (`neurons/competing.py`), and the penalty would work against
what such layers have to be. Depthwise kernels: a channel each, most of them smooth or find an edge, and many alike.
Positions, absolute or relative: neighbours are alike because places are near, and a model reads nearness from that.
Types of input: few, and alike where the model need not tell them apart. So all three are left out, of whatever role,
unless they are asked for. Rejected: depthwise kernels alone, which would push positions apart as soon as
`embedding_weight` is set for the sake of the words.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, neuron_groups
from hf_mhe.neurons.patterns import as_patterns, matched
from hf_mhe.neurons.untrained import check_asked, never_trains
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.diagnosis import speaks
from hf_mhe.training.engines.dtensor.fsdp2 import as_updated
from hf_mhe.training.engines.refuse import refuse_parameter
from hf_mhe.training.messages import not_competing, nothing_left, roles_without_groups
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
    compete, apart = without_apart(found, config)
    weighted = [group for group in compete if config.weight(group.role) > 0]
    if all(never_trains(group) for group in weighted):
        raise MHEError(nothing_left(model, found, weighted, config, apart))
    named = [(group.name, tensor) for group in weighted for tensor in group.tensors()]
    parameters = as_updated(model, [tensor for _, tensor in named])
    for (name, _), parameter in zip(named, parameters, strict=True):
        refuse_parameter(name, parameter)
    for message in roles_without_groups(model, found, config):
        warn_once(model, message)
    left_out = [group for group in apart if config.weight(group.role) > 0]
    if left_out:
        warn_once(model, not_competing(model, left_out))
    if not any(group.requires_grad for group in weighted):
        why = nothing_left(model, found, weighted, config, apart)
        warn_once(model, f"there is no penalty until a layer is unfrozen: {why}")
    return weighted


def without_apart(found: Sequence[NeuronGroup], config: MHEConfig) -> tuple[list[NeuronGroup], list[NeuronGroup]]:
    """The groups whose neurons compete, with those that the config asks for all the same; and those that are left out.

    It asks for all by `only_competing=False`, and for some by a pattern of `include` that matches no others.
    """
    asked = set() if config.only_competing else set(range(len(found)))
    for pattern in as_patterns(config.include, "include"):
        hits = matched(found, pattern, "include")
        if not any(found[index].competes for index in hits):
            asked |= hits
    taken = [group for index, group in enumerate(found) if group.competes or index in asked]
    return taken, [group for index, group in enumerate(found) if not group.competes and index not in asked]


def in_use(groups: Iterable[NeuronGroup]) -> list[NeuronGroup]:
    """Those that train now; one that froze because an adapter was put on or activated cannot be left out.

    Raises:
        MHEError: there is one of these.
    """
    trained_now = []
    for group in groups:
        if group.requires_grad:
            trained_now.append(group)
        else:
            group.check_in_use()
    return trained_now


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

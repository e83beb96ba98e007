"""A regularizer in one line, for whoever prints it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.config import ROLES, MHEConfig
from hf_mhe.training.engines.one_process import OneProcess
from hf_mhe.training.engines.protocol import Engine


def in_one_line(
    model: nn.Module, groups: Sequence[NeuronGroup], config: MHEConfig, find_engine: Callable[[], Engine]
) -> str:
    """Of which model a regularizer is, how many groups it has of each role and at what weight, and what else is set.

    Args:
        model: the user's own model, unwrapped.
        groups: those with a weight above 0, frozen ones too.
        config: the regularizer's.
        find_engine: gives the engine that trains the model now; that of one process is not worth a word.
    """
    said = "off" if config.is_off else "; ".join(_facts(groups, config, find_engine))
    return f"MHERegularizer({type(model).__name__}: {said})"


def _facts(groups: Sequence[NeuronGroup], config: MHEConfig, find_engine: Callable[[], Engine]) -> Iterator[str]:
    counts = {role: sum(group.role == role for group in groups) for role in ROLES}
    if groups:
        yield ", ".join(
            f"{count} {role} group{'s' if count > 1 else ''} x {config.weight(role):g}"
            for role, count in counts.items()
            if count
        )
    if groups and config.objective != "energy":
        yield config.objective
    if config.across and config.weight_across:
        yield f"across {', '.join(config.across)} x {config.weight_across:g}"
    if config.budget is not None:
        yield f"budget {config.budget:g}"
    try:
        frozen = sum(not group.requires_grad for group in groups)
        if frozen:
            yield f"{frozen} of {len(groups)} frozen"
        engine = type(find_engine())
        if engine is not OneProcess:
            yield engine.__name__
    except MHEError as error:  # the model was changed: the next penalty raises this
        yield str(error)

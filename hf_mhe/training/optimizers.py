"""The steps of the optimizers that have some given parameters, as torch reports them.

Note [How a step is known]
`torch.optim` calls global hooks before and after each `step` of every `Optimizer`, with a closure or without, in
whatever library it is wrapped and whether its update is fused or compiled. Of an optimizer that has not stepped yet
the hooks know nothing, so it is looked for among the living objects, once in a while and only where it matters.
Rejected: to watch the parameters' version counters. A search along a line and a perturbation of the weights change
them as a step does, an update through `.data` does not, and where they are sharded they are not those of the shards.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Follower(Protocol):
    """Who wants to know of optimizer steps."""

    def followed(self) -> Sequence[Tensor]:
        """The parameters whose optimizers are followed, as these have them."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Called before each step; what it raises comes out of `optimizer.step`."""

    def after_step(self) -> None:
        """Called after each step."""


class OptimizerSteps:
    """The steps of the optimizers that have some of the follower's parameters.

    Args:
        follower: is not kept alive.

    Attributes:
        taken: how many steps there were.
    """

    def __init__(self, follower: Follower) -> None:
        self.taken = 0
        self._follower = weakref.ref(follower)
        self._running: set[int] = set()
        self._known = False
        self._looks = 0
        _install()
        _WATCHING.add(self)

    @property
    def is_running(self) -> bool:
        """Whether a step is going on, one with a closure that is."""
        return bool(self._running)

    def is_optimizer_known(self) -> bool:
        """Whether an optimizer of torch's has some of the parameters."""
        if not self._known:
            self._looks += 1
            # All objects of the process are looked through: at the first, second, fourth, ... question.
            if self._looks & (self._looks - 1) == 0:
                living = [each for each in gc.get_objects() if issubclass(type(each), Optimizer)]
                self._known = any(self._has_parameters(each) for each in living)
        return self._known

    def begin(self, optimizer: Optimizer) -> None:
        """An optimizer, of whatever parameters, is about to step."""
        follower = self._follower()
        if follower is not None and self._has_parameters(optimizer):
            self._known = True
            follower.before_step(optimizer)
            self._running.add(id(optimizer))

    def end(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""
        follower = self._follower()
        if follower is not None and id(optimizer) in self._running:
            self._running.remove(id(optimizer))
            self.taken += 1
            follower.after_step()

    def _has_parameters(self, optimizer: Optimizer) -> bool:
        follower = self._follower()
        own = set() if follower is None else {id(parameter) for parameter in follower.followed()}
        groups = getattr(optimizer, "param_groups", ())  # there are none before its constructor is done
        return any(id(parameter) in own for group in groups for parameter in group["params"])


_WATCHING: weakref.WeakSet[OptimizerSteps] = weakref.WeakSet()
_INSTALLED: list[Any] = []


def _install() -> None:
    if not _INSTALLED:
        _INSTALLED.append(register_optimizer_step_pre_hook(_before))
        _INSTALLED.append(register_optimizer_step_post_hook(_after))


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for steps in list(_WATCHING):
        steps.begin(optimizer)


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for steps in list(_WATCHING):
        steps.end(optimizer)

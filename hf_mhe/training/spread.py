"""How crowded the groups are that a penalty is computed on, measured by the engine that trains them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from hf_mhe.energy import Potential
from hf_mhe.energy.reference.crowding import ORTHOGONAL, dimension_of_excess
from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.engines.protocol import Engine
from hf_mhe.training.objectives.energy import Energy
from hf_mhe.training.terms import Term

# Note [Spread by an engine]
# The crowding of a layer is the mean over pairs of F(c) = f(c) + f(−c), with f of s = 2 and a softening of ε² = 0.1.
# The mean energy of this f in half space is one of F and of a fixed part, the pairs of a neuron with its own image,
# which can be taken off again. So every engine gives it, as the energy of one more potential, without a gradient. The
# fixed part is that of all n neurons; where some are dead the result is off by less than 1/n of them. Rejected:
# `equivalent_dimension` of the weights, which a rank does not hold under FSDP2 or ZeRO.
_CROWDING = Potential(space="half", softening=math.sqrt(0.1))
_OWN_IMAGE = 1 / 4.1  # f(−1)

_STEPS_BETWEEN = 10
"""A walk without a gradient costs about half of a penalty's: at most a twentieth of it, this often."""


class SpreadLog:
    """The spreads of a log record: in the first one, and in each that is the first of ten steps."""

    def __init__(self) -> None:
        self._step: int | None = None  # of the record before, or of the first step

    def begin(self, step: int) -> None:
        """Say, at each step, how many were counted before: the first that is said is where this training went on.

        So a training that was resumed has its records at the steps at which it would have had them.
        """
        if self._step is None:
            self._step = step

    def drain(
        self, step: int, find_engine: Callable[[], Engine], groups: Sequence[NeuronGroup], *, each: bool
    ) -> dict[str, float]:
        """The record after `step` steps: the groups' mean spread, and with `each` that of every group."""
        before, self._step = self._step, step
        if not step or not groups or before is None or _tenth(before) == _tenth(step):
            return {}
        found = spreads(find_engine(), groups)
        by_group = {f"mhe_spread/{name}": spread for name, spread in found.items()} if each else {}
        return {"mhe_spread": mean_spread(found), **by_group}


def _tenth(step: int) -> int:
    """Steps 1 to 10 are the first ten; none is before them."""
    return (step - 1) // _STEPS_BETWEEN


def spreads(engine: Engine, groups: Sequence[NeuronGroup]) -> dict[str, float]:
    """The spread of each group at the current weights, by the group's name; every rank has to call it.

    The equivalent dimension over the dimension, to three digits or more in float32; see Note [Spread by an engine].
    """
    if not groups:
        return {}
    with torch.no_grad():
        energies = (
            engine.evaluate([Term(group, 1.0, Energy(_CROWDING)) for group in groups]).energies.double().tolist()
        )
    return {group.name: _spread(group, energy) for group, energy in zip(groups, energies, strict=True)}


def _spread(group: NeuronGroup, energy: float) -> float:
    n = group.n
    crowding = (energy * (2 * n - 1) - _OWN_IMAGE) / (n - 1)
    return dimension_of_excess(crowding / ORTHOGONAL - 1) / group.d


def mean_spread(found: dict[str, float]) -> float:
    """Their harmonic mean, as a report has it: crowding, 1 / spread, is what adds up."""
    crowded = math.fsum(1 / spread for spread in found.values())
    return len(found) / crowded if crowded > 0 else math.inf

"""The part of the penalty that pushes whole modules apart: its stacks, its terms, and what a log says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hf_mhe.choices import Across as Kind
from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, Stack, stacks
from hf_mhe.neurons.untrained import never_trains, nothing_but_quantized
from hf_mhe.training.binding import warn_once
from hf_mhe.training.budget.budget import Budget
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.engines.plan import GroupShape
from hf_mhe.training.engines.protocol import Engine
from hf_mhe.training.saved_tensors import kept_in_place
from hf_mhe.training.terms import AcrossTerm, PenaltyTerms, Term


class Across:
    """The stacks of members of a model that a config pushes apart; none where it asks for none.

    Args:
        model: the user's own model, unwrapped.
        config: whose `across`, `include`, `exclude` and `adapters` say which.

    Raises:
        MHEError: the model has none of a kind that is asked for, or none that can ever train.
    """

    def __init__(self, model: nn.Module, config: MHEConfig) -> None:
        self._config = config
        self._stacks: list[Stack] = []
        self._latest: tuple[list[AcrossTerm], Tensor] | None = None  # of a step that may have another pass
        self._sums: dict[str, dict[str, tuple[Tensor, int]]] = {}  # by kind and stack: sum on its device, steps
        if not config.weight_across:
            return
        self._stacks = stacks(
            model,
            cast(Sequence[Kind], config.across),
            include=config.include,
            exclude=config.exclude,
            adapters=config.adapters,
        )
        why = nothing_but_quantized(self.groups)
        if why is not None and all(map(never_trains, self.groups)):
            raise MHEError(f"across={config.across!r}: {why}")
        if not any(stack.requires_grad for stack in self._stacks):
            warn_once(
                model,
                f"across={config.across!r} has no effect until a module is unfrozen: nothing trains in any of the "
                f"{len(self._stacks)} stacks of {type(model).__name__}, such as {self._stacks[0].name!r}",
            )

    @property
    def groups(self) -> list[NeuronGroup]:
        """The groups that the stacks are made of."""
        return [group for stack in self._stacks for group in stack.groups]

    def terms(self) -> list[AcrossTerm]:
        """One for each stack of which something trains now; one that an adapter froze cannot be left out.

        Raises:
            MHEError: a module became something else than it was.
        """
        potential, weight = self._config.potential_across, self._config.weight_across
        found = []
        for stack in self._stacks:
            if stack.requires_grad:
                found.append(AcrossTerm(stack, weight, potential))
            else:
                for group in stack.groups:
                    group.check_in_use()
        return found

    def evaluate(
        self, engine: Engine, terms: Sequence[Term], across: Sequence[AcrossTerm], *, due: bool = False
    ) -> PenaltyTerms:
        """The terms of groups and of stacks as one penalty, and the energies of the groups."""
        found = None
        with kept_in_place():
            if terms:
                found = engine.evaluate_due(terms) if due else engine.evaluate(terms)
            if not across:
                return PenaltyTerms(torch.zeros(()), torch.zeros(0)) if found is None else found
            whole = engine.evaluate_across(across, due=due)
        if due:
            self._count(across, whole.energies)
        if found is None:
            return whole._replace(energies=whole.energies.new_zeros(0))
        return found._replace(penalty=found.penalty + whole.penalty.to(found.penalty))

    def _count(self, terms: Sequence[AcrossTerm], energies: Tensor) -> None:
        self._latest = list(terms), energies

    def begin_step(self, *, again: bool) -> None:
        """Say before each evaluation that is due whether it is one more of the same step, which then counts alone."""
        if again:
            self._latest = None
        self._settle()

    def _settle(self) -> None:
        if self._latest is None:
            return
        (terms, energies), self._latest = self._latest, None
        for term, energy in zip(terms, energies.unbind(), strict=True):
            by_name = self._sums.setdefault(term.stack.kind, {})
            before, steps = by_name.get(term.stack.name, (energy.new_zeros(()), 0))
            by_name[term.stack.name] = before + energy, steps + 1

    def drain(self) -> dict[str, float]:
        """`mhe_across_energy/<kind>`: means over the stacks of each kind, over the steps since the last call."""
        self._settle()
        sums, self._sums = self._sums, {}
        return {
            f"mhe_across_energy/{kind}": float(sum(total / steps for total, steps in by_name.values())) / len(by_name)
            for kind, by_name in sums.items()
        }


def draw(
    budget: Budget, engine: Engine, terms: Sequence[Term], across: Sequence[AcrossTerm], step: int
) -> tuple[list[Term], list[AcrossTerm]]:
    """What a budget draws of the terms of groups and of stacks, together.

    All ranks walk a stack together, each its coordinates where the engine divides them, else each all of them.
    """
    workload = engine.workload([term.group for term in terms])
    times = 1 if engine.divides_members else workload.ranks
    shapes = [GroupShape(term.stack.k, times * term.stack.size, together=True) for term in across]
    drawn = budget.draw([*terms, *across], workload._replace(groups=(*workload.groups, *shapes)), step)
    stacked = [term for term in drawn if isinstance(term, AcrossTerm)]
    return [term for term in drawn if not isinstance(term, AcrossTerm)], stacked


def inflation(exact: Sequence[float], terms: Sequence[Term | AcrossTerm]) -> float:
    """The norm of a drawn penalty's gradient over that of the exact one, if all terms' are alike."""
    return math.hypot(*(term.factor for term in terms)) / math.hypot(*exact)

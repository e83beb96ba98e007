"""The allotment: which groups a step computes, and on how many of their neurons, within an allowance of operations.

Note [What is computed]
Everything where it fits. Otherwise each step draws some of the groups (`rotating_share`), whose energies count 1 / p
times, p the probability of being drawn. A group that would exceed a rank's allowance by itself is computed, when it is
drawn, on a sample of its neurons against all (`sampled_energy`). Both are unbiased, so over the draws the expectation
of the penalty and of its gradient is that of the exact one. A draw is a function of the seed, the step and the groups
alone: all ranks come to the same one, and so does a resumed training.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hf_mhe.energy.estimators.rotating import inclusion_probabilities, rotating_share
from hf_mhe.energy.estimators.sampled import sampled_operations
from hf_mhe.training.engines.plan import Work, make_plan, operations, operations_by_rows, operations_of
from hf_mhe.training.mean_energy import Sample

# On a CPU an operation of the walk took as long as the average one of a training step, whose own products are far from
# the processor's rate too, and those of small groups, which a budget draws more often, 1.4 times as long (MiniLM,
# 32 x 128 tokens, 2 threads).
_WALK = 1.5
_DRAWS = 64  # over which the busiest rank's operations are averaged


class Candidate(NamedTuple):
    """A group as the budget sees it: n neurons in d dimensions, and its mean energy's weight in the penalty.

    `whole` says that all ranks walk it together, all of it. Where its weight is sharded, `rows` are the neurons of the
    rank that holds most, if every rank could walk its own, and `size` are the weight's bytes.
    """

    n: int
    d: int
    weight: float
    whole: bool = False
    rows: int | None = None
    size: int = 0

    def work(self, sample: int | None, ranks: int) -> Work:
        """The group's walk, of all of it or of a sample of so many neurons."""
        if sample is not None:
            return Work(sampled_operations(sample, self.n, self.d), None, self.size)
        rows = -(-self.n // ranks) if self.whole else self.rows
        by_rows = None if rows is None else operations_by_rows(rows, self.n, self.d)
        return Work(operations(self.n, self.d), by_rows, self.size)


class Drawn(NamedTuple):
    """A group to compute at a step: its place, how often it counts, and the sample of its neurons, if not all."""

    place: int
    factor: float
    sample: Sample | None


@dataclass(frozen=True)
class Allotment:
    """How the penalty is kept within an allowance.

    Attributes:
        groups: what the penalty is a sum over.
        rows: for each group the number of neurons that a sample of it has, None where it is computed exactly.
        mean: the operations of a step, on average, on all ranks together.
        ranks: how many divide the work.
    """

    groups: tuple[Candidate, ...]
    rows: tuple[int | None, ...]
    mean: float
    ranks: int

    @functools.cached_property
    def works(self) -> tuple[Work, ...]:
        """The walk of each group, when it is drawn."""
        return tuple(group.work(rows, self.ranks) for group, rows in zip(self.groups, self.rows, strict=True))

    @property
    def costs(self) -> list[int]:
        """The operations of each group, when it is drawn."""
        return [work.whole for work in self.works]

    @property
    def exact(self) -> int:
        """The operations of the exact penalty."""
        return sum(operations(group.n, group.d) for group in self.groups)

    @property
    def is_exact(self) -> bool:
        """Whether every step computes everything."""
        return self.mean >= self.exact

    def probabilities(self) -> list[float]:
        """With which each group is drawn."""
        return inclusion_probabilities(self.costs, self.mean, [group.weight for group in self.groups])

    def draw(self, step: int, seed: int) -> list[Drawn]:
        """What is computed at an optimizer step, in ascending order; nothing at some steps of a very small budget."""
        chosen = rotating_share(self.costs, self.mean, step, benefits=[g.weight for g in self.groups], seed=seed)
        return [Drawn(place, factor, self._sample(place, step, seed)) for place, factor in chosen.items()]

    def _sample(self, place: int, step: int, seed: int) -> Sample | None:
        rows = self.rows[place]
        # A string is hashed by SHA-512, alike in every process and version of Python.
        return None if rows is None else Sample(rows, random.Random(f"{seed}/{step}/{place}").getrandbits(63))

    def busiest(self, places: Sequence[int]) -> int:
        """The operations of the rank that has most of them, where these groups are computed."""
        together = sum(self.works[place].by_rows or 0 for place in places if self.groups[place].whole)
        divided = tuple(self.works[place] for place in places if not self.groups[place].whole)
        return together + max(operations_of(make_plan(divided, self.ranks), divided, self.ranks))


@functools.lru_cache(maxsize=16)
def allot(groups: tuple[Candidate, ...], allowance: float, ranks: int) -> Allotment:
    """The allotment with which the busiest of `ranks` has `allowance` operations a step, or fewer, on average."""
    allowed = allowance / _WALK
    everything = Allotment(groups, (None,) * len(groups), sum(operations(g.n, g.d) for g in groups), ranks)
    if everything.busiest(range(len(groups))) <= allowed:
        return everything
    alone = [everything.busiest([place]) for place in range(len(groups))]
    rows = [None if g.whole or cost <= allowed else _rows(g, allowed) for g, cost in zip(groups, alone, strict=True)]
    made = Allotment(groups, tuple(rows), math.inf, ranks)
    made = replace(made, mean=min(allowed * ranks, sum(made.costs)))
    # A few groups cannot be divided evenly: draw fewer, until the busiest rank's share is within the allowance.
    for _ in range(8):
        busiest = _busiest(made)
        if busiest <= allowed * 1.001:
            break
        made = replace(made, mean=made.mean * allowed / busiest)
    return made


def _busiest(allotment: Allotment) -> float:
    """The mean over the steps of the operations of the rank that has most of them."""
    if allotment.ranks == 1:
        return math.fsum(p * cost for p, cost in zip(allotment.probabilities(), allotment.costs, strict=True))
    draws = ([each.place for each in allotment.draw(step, seed=0)] for step in range(_DRAWS))
    return sum(allotment.busiest(places) for places in draws) / _DRAWS


def _rows(group: Candidate, allowed: float) -> int:
    """The size of the largest sample within the allowance, 1 at least."""
    low, high = 1, group.n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sampled_operations(middle, group.n, group.d) <= allowed else (low, middle)
    return low


def describe(allotment: Allotment, budget: float, step_operations: float, ranks: int) -> str:
    """What was chosen, in one line."""
    count, sampled = len(allotment.groups), sum(rows is not None for rows in allotment.rows)
    on_ranks = f" on each of {ranks} ranks" if ranks > 1 else ""
    head = f"MHE budget {100 * budget:g} % of {_giga(step_operations)} a step{on_ranks}"
    if allotment.is_exact:
        return f"{head}: the exact penalty fits, {_giga(allotment.exact)}"
    at_a_time = math.fsum(allotment.probabilities())
    samples = f", {sampled} of them by a sample of their neurons" if sampled else ""
    return (
        f"{head}: {allotment.mean / allotment.exact:.2g} of the operations of the exact penalty "
        f"({_giga(allotment.mean)} of {_giga(allotment.exact)}), {at_a_time:.3g} of {count} groups each step{samples}"
    )


def _giga(operations: float) -> str:
    return f"{operations / 1e9:.3g} GFLOP"

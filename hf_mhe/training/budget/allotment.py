"""The allotment: which groups a step computes, and on how many of their neurons, within an allowance of operations.

Note [What is computed]
Everything where it fits. Otherwise each step draws some of the groups (`rotating_share`), whose energies count 1 / p
times, p the probability of being drawn. A group that would exceed a rank's allowance by itself is computed, when it is
drawn, on a sample of its neurons against all (`sampled_energy`); another objective than the energy has no estimate
from a sample, and its group is drawn less often. All of this is unbiased, so over the draws the expectation of the
penalty and of its gradient is that of the exact one. A draw is a function of the seed, the step and the groups alone:
all ranks come to the same one, and so does a resumed training.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hf_mhe.energy.estimators.rotating import inclusion_probabilities, rotating_share
from hf_mhe.energy.estimators.sampled import sampled_operations
from hf_mhe.training.engines.plan import Cost, GroupShape, Workload, make_plan, operations_of
from hf_mhe.training.objectives.objective import Sample

# On a CPU an operation of the walk took as long as the average one of a training step, whose own products are far from
# the processor's rate too, and those of small groups, which a budget draws more often, 1.4 times as long (MiniLM,
# 32 x 128 tokens, 2 threads).
_WALK = 1.5
_DRAWS = 64  # over which the busiest rank's operations are averaged


@dataclass(frozen=True)
class Allotment:
    """How the penalty is kept within an allowance.

    It is made from shapes alone, so that it can be asked for models that are nowhere.

    Attributes:
        workload: the groups that the penalty is a sum over, and how many ranks divide the work.
        factors: of the groups' mean energies in the penalty.
        rows: for each group the number of neurons that a sample of it has, None where it is computed exactly.
        mean: the operations of a step, on average, on all ranks together.
    """

    workload: Workload
    factors: tuple[float, ...]
    rows: tuple[int | None, ...]
    mean: float

    @functools.cached_property
    def costs(self) -> tuple[Cost, ...]:
        """Of the walk over each group, when it is drawn."""
        shapes = zip(self.workload.groups, self.rows, strict=True)
        return tuple(shape.cost(rows, self.workload.ranks) for shape, rows in shapes)

    @property
    def operations(self) -> list[int]:
        """Of each group, when it is drawn."""
        return [cost.whole for cost in self.costs]

    @property
    def exact(self) -> int:
        """The operations of the exact penalty."""
        return sum(shape.cost(None, self.workload.ranks).whole for shape in self.workload.groups)

    @property
    def is_exact(self) -> bool:
        """Whether every step computes everything."""
        return self.mean >= self.exact

    def probabilities(self) -> list[float]:
        """With which each group is drawn."""
        return inclusion_probabilities(self.operations, self.mean, self.factors)

    def draw(self, step: int, seed: int) -> dict[int, float]:
        """Which groups an optimizer step computes, by index, and what their factors are multiplied by.

        The indices ascend. At some steps of a very small budget there are none.
        """
        return rotating_share(self.operations, self.mean, step, benefits=self.factors, seed=seed)

    def sample(self, index: int, step: int, seed: int) -> Sample | None:
        """The sample of a group's neurons that an optimizer step computes; None where it computes all of them."""
        rows = self.rows[index]
        # A string is hashed by SHA-512, alike in every process and version of Python.
        return None if rows is None else Sample(rows, random.Random(f"{seed}/{step}/{index}").getrandbits(63))

    def busiest(self, indices: Iterable[int]) -> int:
        """The operations of the rank that has most of them, where these groups are computed."""
        drawn = [(self.workload.groups[index].together, self.costs[index]) for index in indices]
        by_all = sum(cost.by_rows or 0 for together, cost in drawn if together)
        divided = tuple(cost for together, cost in drawn if not together)
        ranks = self.workload.ranks
        return by_all + max(operations_of(make_plan(divided, ranks), divided, ranks))


@functools.lru_cache(maxsize=16)
def allot(workload: Workload, factors: tuple[float, ...], allowance: float) -> Allotment:
    """The allotment with which the busiest rank has `allowance` operations a step, or fewer, on average.

    Args:
        workload: the groups, and how many ranks divide the work.
        factors: of the groups' mean energies in the penalty.
        allowance: operations of a rank.
    """
    allowed, shapes = allowance / _WALK, workload.groups
    everything = Allotment(workload, factors, (None,) * len(shapes), math.inf)
    everything = replace(everything, mean=everything.exact)
    if everything.busiest(range(len(shapes))) <= allowed:
        return everything
    alone = [everything.busiest([index]) for index in range(len(shapes))]
    rows = [
        None if shape.together or shape.whole is not None or cost <= allowed else _rows(shape, allowed)
        for shape, cost in zip(shapes, alone, strict=True)
    ]
    made = Allotment(workload, factors, tuple(rows), math.inf)
    made = replace(made, mean=min(allowed * workload.ranks, sum(made.operations)))
    # A few groups cannot be divided evenly: draw fewer, until the busiest rank's share is within the allowance.
    for _ in range(8):
        busiest = _busiest(made)
        if busiest <= allowed * 1.001:
            break
        made = replace(made, mean=made.mean * allowed / busiest)
    return made


def _busiest(allotment: Allotment) -> float:
    """The mean over the steps of the operations of the rank that has most of them."""
    if allotment.workload.ranks == 1:
        pairs = zip(allotment.probabilities(), allotment.operations, strict=True)
        return math.fsum(p * operations for p, operations in pairs)
    return sum(allotment.busiest(allotment.draw(step, seed=0)) for step in range(_DRAWS)) / _DRAWS


def _rows(shape: GroupShape, allowed: float) -> int:
    """The size of the largest sample within the allowance, 1 at least."""
    low, high = 1, shape.n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sampled_operations(middle, shape.n, shape.d) <= allowed else (low, middle)
    return low


def describe(allotment: Allotment, budget: float, step_operations: float) -> str:
    """What was chosen, in one line."""
    ranks, count = allotment.workload.ranks, len(allotment.factors)
    sampled = sum(rows is not None for rows in allotment.rows)
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

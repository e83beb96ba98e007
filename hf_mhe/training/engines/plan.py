"""Who walks what, where ranks divide the work: chosen from counted operations alone.

Note [Whole weights or rows]
A weight can go whole to one rank, which walks each pair once and sends every rank the gradient of its rows, or to all
ranks, each of which walks the rows that it holds against all of them and has its gradient at once. The first costs
`3 n^2 d` operations once, and sends `2 n d` elements in all. The second costs a rank with m rows
`3 m^2 d + 4 m (n - m) d`, a third more than its share where there are many ranks, because two ranks walk each pair;
and it sends `n d` elements to every rank. So whole weights it is, where there are enough of them to keep all ranks
busy; a few that outweigh a rank's share go by rows.

One byte counts as 1000 operations: a GPU with 50 TFLOP/s does that many while a network of 50 GB/s between two
nodes brings it one byte. For 70 B parameters on 512 ranks the operations of the busiest would be half as many by rows,
and the bytes that it receives a hundred times as many. Rejected: dividing the pairs of one weight evenly, which needs
a reduction of as many elements as the weight has, from and to every rank.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from hf_mhe.energy.estimators.sampled import sampled_operations

OPERATIONS_PER_BYTE = 1000


class Cost(NamedTuple):
    """What the walk over one weight costs: operations, and the weight's bytes.

    `whole` are the operations where one rank walks it alone, `by_rows` those of the busiest rank where every rank
    walks the rows that it holds; None where that cannot be.
    """

    whole: int
    by_rows: int | None = None
    size: int = 0


class GroupShape(NamedTuple):
    """A group as its cost depends on it: n neurons in d dimensions, and where they are.

    `together` says that all ranks walk it, each some of its neurons, and always all of them. Where its weight is
    sharded, `rows` are the neurons of the rank that holds most, if every rank could walk its own, and `size` are the
    weight's bytes. `whole` are the operations where something else than the energy is computed, by one rank, and never
    of a sample.
    """

    n: int
    d: int
    together: bool = False
    rows: int | None = None
    size: int = 0
    whole: int | None = None

    def cost(self, sample: int | None, ranks: int) -> Cost:
        """What its walk costs, of all of it or of a sample of `sample` neurons."""
        if self.whole is not None:
            return Cost(self.whole, None, self.size)
        if sample is not None:
            return Cost(operations(self.n, self.d, sample), None, self.size)
        rows = -(-self.n // ranks) if self.together else self.rows
        by_rows = None if rows is None else operations_by_rows(rows, self.n, self.d)
        return Cost(operations(self.n, self.d), by_rows, self.size)


class Workload(NamedTuple):
    """What a budget has to know of a step: the groups, and how many ranks divide the walk over each, at least."""

    groups: tuple[GroupShape, ...]
    ranks: int = 1


Plan = tuple[int | None, ...]
"""For each weight the rank that walks it whole, or None where every rank walks the rows that it holds."""


def balance(costs: Sequence[int], ranks: int) -> list[int]:
    """The rank that each item falls to, so that costs are balanced: the most costly first, to the rank with least."""
    load = [0] * ranks
    chosen = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        chosen[item] = min(range(ranks), key=load.__getitem__)
        load[chosen[item]] += costs[item]
    return chosen


@functools.lru_cache(maxsize=64)
def make_plan(costs: tuple[Cost, ...], ranks: int) -> Plan:
    """The plan whose busiest rank has the least to do, operations and bytes together."""
    best: Plan = ()
    least: float | None = None
    # Weights that cost at least the threshold are walked by rows: the most costly are the last to give to one rank.
    thresholds = sorted({cost.whole for cost in costs if cost.by_rows is not None}, reverse=True)
    for threshold in (None, *thresholds):
        costly = [threshold is not None and cost.whole >= threshold for cost in costs]
        rows = {i for i, cost in enumerate(costs) if costly[i] and cost.by_rows is not None}
        rest = [i for i in range(len(costs)) if i not in rows]
        walkers: list[int | None] = [None] * len(costs)
        for i, walker in zip(rest, balance([costs[i].whole for i in rest], ranks), strict=True):
            walkers[i] = walker
        operations, received = operations_of(walkers, costs, ranks), _received(walkers, costs, ranks)
        load = max(mine + OPERATIONS_PER_BYTE * came for mine, came in zip(operations, received, strict=True))
        if least is None or load < least:
            best, least = tuple(walkers), load
    return best


def operations_of(walkers: Sequence[int | None], costs: Sequence[Cost], ranks: int) -> list[int]:
    """The operations of each rank; of what is walked by rows, those of the busiest."""
    load = [sum(cost.by_rows or 0 for cost, walker in zip(costs, walkers, strict=True) if walker is None)] * ranks
    for cost, walker in zip(costs, walkers, strict=True):
        if walker is not None:
            load[walker] += cost.whole
    return load


def _received(walkers: Sequence[int | None], costs: Sequence[Cost], ranks: int) -> list[float]:
    """The bytes that come to each rank: what it walks and others hold, and gradients of its own rows."""
    others, own = 1 - 1 / ranks, 1 / ranks
    pairs = list(zip(costs, walkers, strict=True))
    received = [sum(cost.size * (others if walker is None else own) for cost, walker in pairs)] * ranks
    for cost, walker in pairs:
        if walker is not None:
            received[walker] += cost.size * (others - own)
    return received


def operations(n: int, d: int, sample: int | None = None) -> int:
    """Floating-point operations of the walk over n neurons in d dimensions, or `sample` of them, with its gradient."""
    return 3 * n * n * d if sample is None else sampled_operations(sample, n, d)


def operations_by_rows(own: int, n: int, d: int) -> int:
    """Those of `own` neurons against all n."""
    return 3 * own * own * d + 4 * own * (n - own) * d

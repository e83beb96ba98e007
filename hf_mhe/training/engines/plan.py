"""Who walks what, where the work on sharded weights is divided: chosen from counted operations alone.

Note [Whole weights or rows]
A weight can go whole to one rank, which walks each pair once and sends every owner its part of the gradient, or to all
ranks, each of which walks the rows that it owns against all of them and has its gradient at once. The first costs
`3 n^2 d` operations once, and sends `2 n d` elements in all. The second costs a rank with m rows
`3 m^2 d + 4 m (n - m) d`, a third more than its share where there are many ranks, because two owners walk each pair;
and it sends `n d` elements to every rank. So whole weights it is, where there are enough of them to keep all ranks
busy; a few that outweigh a rank's share go by rows. Rejected: dividing the pairs of one weight evenly, which needs a
reduction of as many elements as the weight has, from and to every rank.
"""

from __future__ import annotations

import functools

from hf_mhe.energy.estimators.sampled import sampled_operations
from hf_mhe.training.engines.ddp import divide
from hf_mhe.training.mean_energy import Sample

Plan = tuple[int | None, ...]
"""For each weight the rank that walks it whole, or None where every rank walks the rows that it holds."""


@functools.lru_cache(maxsize=64)
def make_plan(whole: tuple[int, ...], by_rows: tuple[int | None, ...], ranks: int) -> Plan:
    """The plan whose busiest rank has the fewest operations.

    Args:
        whole: the operations of each weight, walked whole.
        by_rows: those of the busiest rank, where the weight can be walked by rows; None where it cannot.
        ranks: how many ranks there are.
    """
    best: Plan = ()
    fewest: int | None = None
    # By rows goes whatever costs at least so much: the dearest weight is the last that one would give to one rank.
    thresholds = sorted({cost for cost, rows in zip(whole, by_rows, strict=True) if rows is not None}, reverse=True)
    for threshold in (None, *thresholds):
        rows = [i for i, cost in enumerate(by_rows) if cost is not None and threshold and whole[i] >= threshold]
        rest = [i for i in range(len(whole)) if i not in rows]
        owners: list[int | None] = [None] * len(whole)
        load = [sum(by_rows[i] or 0 for i in rows)] * ranks
        for i, owner in zip(rest, divide([whole[i] for i in rest], ranks), strict=True):
            owners[i] = owner
            load[owner] += whole[i]
        if fewest is None or max(load) < fewest:
            best, fewest = tuple(owners), max(load)
    return best


def operations(n: int, d: int, sample: Sample | None = None) -> int:
    """Floating-point operations of the walk over n neurons in d dimensions, or a sample of them, with its gradient."""
    return 3 * n * n * d if sample is None else sampled_operations(sample.rows, n, d)


def operations_by_rows(own: int, n: int, d: int) -> int:
    """Those of `own` neurons against all n."""
    return 3 * own * own * d + 4 * own * (n - own) * d

"""Who walks what, where the work on sharded weights is divided: chosen from counted operations alone.

Note [Whole weights or rows]
A weight can go whole to one rank, which walks each pair once and sends every owner its part of the gradient, or to all
ranks, each of which walks the rows that it owns against all of them and has its gradient at once. The first costs
`3 n^2 d` operations once, and sends `2 n d` elements in all. The second costs a rank with m rows
`3 m^2 d + 4 m (n - m) d`, a third more than its share where there are many ranks, because two owners walk each pair;
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
from hf_mhe.training.engines.ddp import divide
from hf_mhe.training.mean_energy import Sample

OPERATIONS_PER_BYTE = 1000


class Work(NamedTuple):
    """One weight: the operations of its walk, and its bytes.

    `by_rows` are the operations of the busiest rank where every rank walks the rows that it holds; None where that
    cannot be.
    """

    whole: int
    by_rows: int | None = None
    size: int = 0


Plan = tuple[int | None, ...]
"""For each weight the rank that walks it whole, or None where every rank walks the rows that it holds."""


@functools.lru_cache(maxsize=64)
def make_plan(works: tuple[Work, ...], ranks: int) -> Plan:
    """The plan whose busiest rank has the least to do, operations and bytes together."""
    best: Plan = ()
    least: float | None = None
    # Weights that cost at least the threshold are walked by rows: the most costly are the last to give to one rank.
    thresholds = sorted({work.whole for work in works if work.by_rows is not None}, reverse=True)
    for threshold in (None, *thresholds):
        costly = [threshold is not None and work.whole >= threshold for work in works]
        rows = {i for i, work in enumerate(works) if costly[i] and work.by_rows is not None}
        rest = [i for i in range(len(works)) if i not in rows]
        owners: list[int | None] = [None] * len(works)
        for i, owner in zip(rest, divide([works[i].whole for i in rest], ranks), strict=True):
            owners[i] = owner
        operations, received = operations_of(owners, works, ranks), _received(owners, works, ranks)
        load = max(mine + OPERATIONS_PER_BYTE * came for mine, came in zip(operations, received, strict=True))
        if least is None or load < least:
            best, least = tuple(owners), load
    return best


def operations_of(owners: Sequence[int | None], works: Sequence[Work], ranks: int) -> list[int]:
    """The operations of each rank; of what is walked by rows, those of the busiest."""
    load = [sum(work.by_rows or 0 for work, owner in zip(works, owners, strict=True) if owner is None)] * ranks
    for work, owner in zip(works, owners, strict=True):
        if owner is not None:
            load[owner] += work.whole
    return load


def _received(owners: Sequence[int | None], works: Sequence[Work], ranks: int) -> list[float]:
    """The bytes that come to each rank: what it walks and others hold, and gradients of its own part."""
    others, own = 1 - 1 / ranks, 1 / ranks
    pairs = list(zip(works, owners, strict=True))
    received = [sum(work.size * (others if owner is None else own) for work, owner in pairs)] * ranks
    for work, owner in pairs:
        if owner is not None:
            received[owner] += work.size * (others - own)
    return received


def operations(n: int, d: int, sample: Sample | None = None) -> int:
    """Floating-point operations of the walk over n neurons in d dimensions, or a sample of them, with its gradient."""
    return 3 * n * n * d if sample is None else sampled_operations(sample.rows, n, d)


def operations_by_rows(own: int, n: int, d: int) -> int:
    """Those of `own` neurons against all n."""
    return 3 * own * own * d + 4 * own * (n - own) * d

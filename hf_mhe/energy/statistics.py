"""What the analysis wants to know about one layer, gathered in one walk over its pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.checks import check_integer
from hf_mhe.energy.near_duplicates import NearDuplicates, check_duplicate_cosine, check_max_pairs
from hf_mhe.energy.observers.cosines import Cosines
from hf_mhe.energy.observers.energies import Energies
from hf_mhe.energy.observers.excess import Excess
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import product_dtype, without_autocast
from hf_mhe.energy.reference.crowding import dimension_of_excess
from hf_mhe.energy.rows import NEGLIGIBLE, check_weight, unit_rows
from hf_mhe.energy.walks.blocked import walk
from hf_mhe.energy.walks.panels import PanelBatch
from hf_mhe.energy.workspace import scratch
from hf_mhe.errors import MHEError


@dataclass(frozen=True)
class PairStatistics:
    """One layer's pairs of neurons.

    Attributes:
        n: live neurons (rows that are not zero).
        d: dimension of a neuron.
        energy: mean energy over ordered pairs, coincident pairs left out; NaN if every pair coincides.
        max_cosine: largest cosine of any pair.
        min_cosine: smallest cosine of any pair.
        nearest_pair: the rows (numbered as in the weight) whose cosine is the largest.
        near_duplicates: unordered pairs with a cosine of at least `duplicate_cosine`, the coincident ones included; in
            half space by absolute value.
        coincident: unordered pairs at distance zero, which the energy leaves out.
        dead: rows of zeros, numbered as in the weight.
        near_dead: other rows shorter than 2^-12 of the longest, which training takes for dead (`energy/rows.py`).
        nearest_cosine: `(n,)` float32, each live neuron's largest cosine.
        histogram: `(bins,)` int64, unordered pairs per bin of equal width over cosines in [-1, 1].
        equivalent_dimension: the dimension in which random directions would be as crowded, coincident pairs included.
        mean_cosine: over all unordered pairs, coincident ones included.
        mean_square_cosine: the mean of the squared cosine over the same pairs; 1 / d for random directions.
        duplicate_pairs: the closest near-duplicates as `(i, j, cosine)`, rows numbered as in the weight, i < j, the
            largest absolute cosine first, then by `(i, j)`; cosines exact to float64, of coincident pairs 1 (or -1).
        clusters: the rows that near-duplicate pairs connect, each sorted; the largest first, then by the first row.
        distinct: live neurons if each cluster counts once.
        variants: for each further potential that was asked for, its mean energy, the pairs that coincide left out.
    """

    n: int
    d: int
    energy: float
    max_cosine: float
    min_cosine: float
    nearest_pair: tuple[int, int]
    near_duplicates: int
    coincident: int
    dead: tuple[int, ...]
    near_dead: tuple[int, ...]
    nearest_cosine: Tensor
    histogram: Tensor
    equivalent_dimension: float
    mean_cosine: float
    mean_square_cosine: float
    duplicate_pairs: tuple[tuple[int, int, float], ...]
    clusters: tuple[tuple[int, ...], ...]
    distinct: int
    variants: Mapping[Potential, float] = field(default_factory=dict)


@torch.no_grad()
@without_autocast
def pair_statistics(
    weight: Tensor,
    potential: Potential,
    *,
    variants: Iterable[Potential] = (),
    duplicate_cosine: float = 0.95,
    bins: int = 64,
    max_pairs: int = 20,
) -> PairStatistics:
    """Energy and pair statistics of the rows of `weight` `(n, d)`, any real floating dtype, in one exact walk.

    Args:
        weight: one neuron a row; rows of zeros are counted as dead and left out.
        potential: the pair function of the energy.
        variants: further potentials, whose energies come from the same cosines.
        duplicate_cosine: pairs at or above it are near-duplicates, in (0, 1].
        bins: of the histogram of cosines.
        max_pairs: how many near-duplicate pairs to list, the closest first.

    Raises:
        MHEError: wrong rank or dtype, a value that is not finite, fewer than two live neurons, or an option out of its
            range.
    """
    duplicate_cosine = check_duplicate_cosine(duplicate_cosine)
    variants = tuple(variants)
    for each in variants:
        if not isinstance(each, Potential):
            raise MHEError(f"variants must be potentials, such as Potential(s=1); got {each!r}")
    bins = check_integer("bins", bins, at_least=1, right="at least 1")
    max_pairs = check_max_pairs(max_pairs)
    check_weight(weight, ranks=(2,))
    dtype = product_dtype(weight)
    room = scratch("unit rows", weight.numel(), dtype, weight.device).view(weight.shape)
    rows = unit_rows(weight, dtype, dead="skip", out=room)
    shared = _mean_cosine(rows.unit)  # now, when the rows are in the cache
    source = weight if rows.live is None else weight[rows.live]
    mirrored = potential.space == "half"
    duplicates = NearDuplicates(
        duplicate_cosine, weight.dtype, rows.unit, source, mirrored=mirrored, max_pairs=max_pairs
    )
    seen, excess = Cosines(bins, rows.unit), Excess(rows.unit, source)
    energies = Energies((each for each in variants if each != potential), rows.unit, source)
    observers = _Observers(seen, duplicates, excess, energies)
    pairs = walk(rows.unit, source, potential, gradient=False, observer=observers, leave_out_coincident=True)
    energy = potential.mean_of(pairs.value, len(rows.unit), coincident=pairs.coincident)

    first, second = _nearest_pair(rows.unit, seen.nearest)
    listed, clusters = duplicates.pairs(), duplicates.clusters()
    near_dead = (rows.norm < NEGLIGIBLE * rows.norm.amax()).flatten().nonzero().flatten().tolist()
    dead: list[int] = []
    if rows.live is not None:
        row = rows.live.tolist()
        first, second = row[first], row[second]
        listed = tuple((row[i], row[j], cosine) for i, j, cosine in listed)
        near_dead = [row[each] for each in near_dead]
        clusters = tuple(tuple(row[each] for each in cluster) for cluster in clusters)
        is_dead = torch.ones(len(weight), dtype=torch.bool, device=weight.device).index_fill_(0, rows.live, False)
        dead = is_dead.nonzero().flatten().tolist()
    return PairStatistics(
        n=len(rows.unit),
        d=weight.shape[1],
        energy=energy,
        max_cosine=min(1.0, float(seen.nearest.max())),
        min_cosine=max(-1.0, seen.smallest),
        nearest_pair=(first, second),
        near_duplicates=duplicates.count,
        coincident=pairs.coincident,
        dead=tuple(dead),
        near_dead=tuple(near_dead),
        nearest_cosine=seen.nearest.clamp(-1, 1).float().cpu(),
        histogram=seen.histogram.cpu(),
        equivalent_dimension=dimension_of_excess(excess.mean),
        mean_cosine=shared,
        mean_square_cosine=excess.mean_square,
        duplicate_pairs=listed,
        clusters=clusters,
        distinct=len(rows.unit) - sum(len(cluster) - 1 for cluster in clusters),
        variants={each: energy if each == potential else energies.mean(each) for each in variants},
    )


# Two products of one pair differ by rounding: that in which it was the one row's nearest, and that of the other row's.
_SAME_COSINE = 1e-5
_CANDIDATES_AT_A_TIME = 1 << 12


def _nearest_pair(unit: Tensor, nearest: Tensor) -> tuple[int, int]:
    """The two rows with the largest cosine, in order; they are among those whose nearest cosine is the largest."""
    first = int(nearest.argmax())
    others = (nearest >= nearest[first] - _SAME_COSINE).nonzero().flatten()
    others = others[others != first]
    cosines = torch.cat([unit[some] @ unit[first] for some in others.split(_CANDIDATES_AT_A_TIME)])
    second = int(others[cosines.argmax()])
    return min(first, second), max(first, second)


_ROWS_AT_A_TIME = 64


def _mean_cosine(unit: Tensor) -> float:
    """The mean cosine over the pairs of unit rows `(n, d)`: from the length of their sum, which takes `n d` additions.

    In float64, because of the square of that length only what is beyond n counts; but for the sums of 64 rows each,
    whose rounding is below that of the rows.
    """
    even = len(unit) // _ROWS_AT_A_TIME * _ROWS_AT_A_TIME
    some = unit[:even].reshape(-1, _ROWS_AT_A_TIME, unit.shape[1]).sum(1)
    total = some.double().sum(0) + unit[even:].double().sum(0)
    n = len(unit)
    return min(1.0, (float(total.dot(total)) - n) / (n * (n - 1)))


class _Observers(NamedTuple):
    """All statistics of one walk: the extremes of a piece, which the first one finds, say to the others what to do."""

    cosines: Cosines
    duplicates: NearDuplicates
    excess: Excess
    energies: Energies

    def observe(self, cos: Tensor, piece: PanelBatch) -> tuple[float, float]:
        extremes = self.cosines.observe(cos, piece)
        for panel, block in zip(piece.items(), cos.view(-1, *cos.shape[-2:]), strict=True):
            self.duplicates.see(block, panel, *extremes)
        self.excess.observe(cos, piece, extremes)
        self.energies.observe(cos, piece, extremes)
        return extremes

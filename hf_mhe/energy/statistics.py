"""What the analysis wants to know about one layer, gathered in one walk over its pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.checks import check_integer
from hf_mhe.energy.equivalent_dimension import Excess
from hf_mhe.energy.near_duplicates import NearDuplicates, check_duplicate_cosine, check_max_pairs
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import product_dtype, without_autocast
from hf_mhe.energy.reference.crowding import dimension_of_excess
from hf_mhe.energy.rows import check_weight, row_chunks, unit_rows
from hf_mhe.energy.walks.blocked import Observer, walk
from hf_mhe.energy.walks.panels import Panel


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
        nearest_cosine: `(n,)` float32, each live neuron's largest cosine.
        histogram: `(bins,)` int64, unordered pairs per bin of equal width over cosines in [-1, 1].
        equivalent_dimension: the dimension in which random directions would be as crowded, coincident pairs included.
        mean_cosine: over all unordered pairs, coincident ones included.
        mean_square_cosine: the mean of the squared cosine over the same pairs; 1 / d for random directions.
        duplicate_pairs: the closest near-duplicates as `(i, j, cosine)`, rows numbered as in the weight, i < j, the
            largest absolute cosine first, then by `(i, j)`; cosines exact to float64, of coincident pairs 1 (or -1).
        clusters: the rows that near-duplicate pairs connect, each sorted; the largest first, then by the first row.
        distinct: live neurons if each cluster counts once.
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
    nearest_cosine: Tensor
    histogram: Tensor
    equivalent_dimension: float
    mean_cosine: float
    mean_square_cosine: float
    duplicate_pairs: tuple[tuple[int, int, float], ...]
    clusters: tuple[tuple[int, ...], ...]
    distinct: int


@torch.no_grad()
@without_autocast
def pair_statistics(
    weight: Tensor, potential: Potential, *, duplicate_cosine: float = 0.95, bins: int = 64, max_pairs: int = 20
) -> PairStatistics:
    """Energy and pair statistics of the rows of `weight` `(n, d)`, any real floating dtype, in one exact walk.

    Args:
        weight: one neuron a row; rows of zeros are counted as dead and left out.
        potential: the pair function of the energy.
        duplicate_cosine: pairs at or above it are near-duplicates, in (0, 1].
        bins: of the histogram of cosines.
        max_pairs: how many near-duplicate pairs to list, the closest first.

    Raises:
        MHEError: wrong rank or dtype, a value that is not finite, fewer than two live neurons, or an option out of its
            range.
    """
    duplicate_cosine = check_duplicate_cosine(duplicate_cosine)
    bins = check_integer("bins", bins, at_least=1, right="at least 1")
    max_pairs = check_max_pairs(max_pairs)
    check_weight(weight, ranks=(2,))
    rows = unit_rows(weight, product_dtype(weight), dead="skip")
    source = weight if rows.live is None else weight[rows.live]
    mirrored = potential.space == "half"
    duplicates = NearDuplicates(
        duplicate_cosine, weight.dtype, rows.unit, source, mirrored=mirrored, max_pairs=max_pairs
    )
    seen = _Cosines(bins, rows.unit, duplicates)
    excess = Excess(rows.unit, source)
    both = _Both(seen, excess)
    pairs = walk(rows.unit, source, potential, gradient=False, observer=both, leave_out_coincident=True)

    live = rows.live if rows.live is not None else torch.arange(len(weight), device=weight.device)
    is_live = torch.zeros(len(weight), dtype=torch.bool, device=weight.device).index_fill_(0, live, True)
    first = int(seen.nearest.argmax())
    # argmax names the first neuron whose nearest cosine is the largest; its partner has to be looked up once.
    cosines = (rows.unit @ rows.unit[first]).index_fill_(0, torch.tensor([first], device=weight.device), -2.0)
    second = int(cosines.argmax())
    places = live.tolist()
    clusters = tuple(tuple(places[row] for row in cluster) for cluster in duplicates.clusters())
    return PairStatistics(
        n=len(rows.unit),
        d=weight.shape[1],
        energy=potential.mean_of(pairs.value, len(rows.unit), coincident=pairs.coincident),
        max_cosine=min(1.0, float(seen.nearest.max())),
        min_cosine=max(-1.0, seen.smallest),
        nearest_pair=(int(live[min(first, second)]), int(live[max(first, second)])),
        near_duplicates=duplicates.count,
        coincident=pairs.coincident,
        dead=tuple((~is_live).nonzero().flatten().tolist()),
        nearest_cosine=seen.nearest.clamp(-1, 1).float().cpu(),
        histogram=seen.histogram.round().to(torch.int64).cpu(),
        equivalent_dimension=dimension_of_excess(excess.mean),
        mean_cosine=mean_cosine(rows.unit),
        mean_square_cosine=excess.mean_square,
        duplicate_pairs=tuple((places[i], places[j], cosine) for i, j, cosine in duplicates.pairs()),
        clusters=clusters,
        distinct=len(rows.unit) - sum(len(cluster) - 1 for cluster in clusters),
    )


def mean_cosine(unit: Tensor) -> float:
    """The mean cosine over the pairs of unit rows `(n, d)`: from the length of their sum, which takes `n d` additions.

    In float64, because of the square of that length only what is beyond n counts.
    """
    total = torch.zeros(unit.shape[1], dtype=torch.float64, device=unit.device)
    for part in row_chunks(unit):
        total += unit[part].double().sum(0)
    n = len(unit)
    return (float(total.dot(total)) - n) / (n * (n - 1))


class _Both(NamedTuple):
    """Two observers of one walk."""

    first: Observer
    second: Observer

    def observe(self, cos: Tensor, panel: Panel) -> None:
        self.first.observe(cos, panel)
        self.second.observe(cos, panel)


class _Cosines:
    """The observer: nearest neighbours, extremes, near-duplicates and the histogram."""

    def __init__(self, bins: int, unit: Tensor, duplicates: NearDuplicates) -> None:
        self.nearest = torch.full((len(unit),), -1.0, dtype=unit.dtype, device=unit.device)
        self.histogram = torch.zeros(bins, dtype=torch.float64, device=unit.device)
        self.smallest = 1.0
        self._duplicates = duplicates

    def observe(self, cos: Tensor, panel: Panel) -> None:
        if panel.diagonal:
            upper = tuple(torch.triu_indices(panel.rows, panel.rows, offset=1, device=cos.device))
            self._count(cos[upper], cos, panel)
            self._raise_nearest(panel.row, cos.clone().fill_diagonal_(-1.0).amax(1))
            return
        self._count(cos, cos, panel)
        self._raise_nearest(panel.row, cos.amax(1))
        self._raise_nearest(panel.column, cos.amax(0))

    def _raise_nearest(self, start: int, cosines: Tensor) -> None:
        part = self.nearest[start : start + len(cosines)]
        torch.maximum(part, cosines, out=part)

    def _count(self, each: Tensor, cos: Tensor, panel: Panel) -> None:
        """Count `each` pair of a panel once."""
        if each.numel() == 0:
            return
        low, high = (float(x) for x in torch.aminmax(each))
        self.smallest = min(self.smallest, low)
        self._duplicates.see(cos, panel, low, high)
        # Rounding may carry a cosine just beyond 1, outside the histogram's last bin.
        if high > 1 or low < -1:
            each = each.clamp(-1, 1)
        self.histogram += torch.histc(each, bins=len(self.histogram), min=-1, max=1).double()

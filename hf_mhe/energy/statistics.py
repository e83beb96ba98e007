"""What the analysis wants to know about one layer, gathered in one walk over its pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.checks import check_integer, check_number
from hf_mhe.energy.equivalent_dimension import Excess
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import product_dtype, without_autocast
from hf_mhe.energy.reference.crowding import dimension_of_excess
from hf_mhe.energy.rows import check_weight, unit_rows
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
        near_duplicates: unordered pairs with a cosine of at least `duplicate_cosine`; in half space by absolute value.
        coincident: unordered pairs at distance zero, which the energy leaves out.
        dead: rows of zeros, numbered as in the weight.
        nearest_cosine: `(n,)` float32, each live neuron's largest cosine.
        histogram: `(bins,)` int64, unordered pairs per bin of equal width over cosines in [-1, 1].
        equivalent_dimension: the dimension in which random directions would be as crowded, coincident pairs included.
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


@torch.no_grad()
@without_autocast
def pair_statistics(
    weight: Tensor, potential: Potential, *, duplicate_cosine: float = 0.95, bins: int = 64
) -> PairStatistics:
    """Energy and pair statistics of the rows of `weight` `(n, d)`, any real floating dtype, in one exact walk.

    Args:
        weight: one neuron a row; rows of zeros are counted as dead and left out.
        potential: the pair function of the energy.
        duplicate_cosine: pairs at or above it are near-duplicates, in (0, 1].
        bins: of the histogram of cosines.

    Raises:
        MHEError: wrong rank or dtype, a value that is not finite, or fewer than two live neurons.
    """
    check_number("duplicate_cosine", duplicate_cosine, above=0, at_most=1, right="in (0, 1]")
    bins = check_integer("bins", bins, at_least=1, right="at least 1")
    check_weight(weight, ranks=(2,))
    rows = unit_rows(weight, product_dtype(weight), dead="skip")
    source = weight if rows.live is None else weight[rows.live]
    seen = _Cosines(len(rows.unit), duplicate_cosine, bins, potential.space == "half", rows.unit)
    excess = Excess(rows.unit, source)
    both = _Both(seen, excess)
    pairs = walk(rows.unit, source, potential, gradient=False, observer=both, leave_out_coincident=True)

    live = rows.live if rows.live is not None else torch.arange(len(weight), device=weight.device)
    is_live = torch.zeros(len(weight), dtype=torch.bool, device=weight.device).index_fill_(0, live, True)
    first = int(seen.nearest.argmax())
    # argmax names the first neuron whose nearest cosine is the largest; its partner has to be looked up once.
    cosines = (rows.unit @ rows.unit[first]).index_fill_(0, torch.tensor([first], device=weight.device), -2.0)
    second = int(cosines.argmax())
    return PairStatistics(
        n=len(rows.unit),
        d=weight.shape[1],
        energy=potential.mean_of(pairs.value, len(rows.unit), coincident=pairs.coincident),
        max_cosine=min(1.0, float(seen.nearest.max())),
        min_cosine=max(-1.0, seen.smallest),
        nearest_pair=(int(live[min(first, second)]), int(live[max(first, second)])),
        near_duplicates=seen.near_duplicates,
        coincident=pairs.coincident,
        dead=tuple((~is_live).nonzero().flatten().tolist()),
        nearest_cosine=seen.nearest.clamp(-1, 1).float().cpu(),
        histogram=seen.histogram.round().to(torch.int64).cpu(),
        equivalent_dimension=dimension_of_excess(excess.mean),
    )


class _Both(NamedTuple):
    """Two observers of one walk."""

    first: Observer
    second: Observer

    def observe(self, cos: Tensor, panel: Panel) -> None:
        self.first.observe(cos, panel)
        self.second.observe(cos, panel)


class _Cosines:
    """The observer: nearest neighbours, extremes, near-duplicates and the histogram."""

    def __init__(self, n: int, duplicate_cosine: float, bins: int, mirrored: bool, like: Tensor) -> None:
        self.nearest = torch.full((n,), -1.0, dtype=like.dtype, device=like.device)
        self.histogram = torch.zeros(bins, dtype=torch.float64, device=like.device)
        self.smallest = 1.0
        self.near_duplicates = 0
        self._duplicate_cosine = duplicate_cosine
        self._mirrored = mirrored

    def observe(self, cos: Tensor, panel: Panel) -> None:
        if panel.diagonal:
            upper = tuple(torch.triu_indices(panel.rows, panel.rows, offset=1, device=cos.device))
            self._count(cos[upper])
            self._raise_nearest(panel.row, cos.clone().fill_diagonal_(-1.0).amax(1))
            return
        self._count(cos)
        self._raise_nearest(panel.row, cos.amax(1))
        self._raise_nearest(panel.column, cos.amax(0))

    def _raise_nearest(self, start: int, cosines: Tensor) -> None:
        part = self.nearest[start : start + len(cosines)]
        torch.maximum(part, cosines, out=part)

    def _count(self, cos: Tensor) -> None:
        if cos.numel() == 0:
            return
        low, high = (float(x) for x in torch.aminmax(cos))
        self.smallest = min(self.smallest, low)
        # Rounding may carry a cosine just beyond 1, outside the histogram's last bin.
        if high > 1 or low < -1:
            cos = cos.clamp(-1, 1)
        self.histogram += torch.histc(cos, bins=len(self.histogram), min=-1, max=1).double()
        if high >= self._duplicate_cosine:
            self.near_duplicates += int((cos >= self._duplicate_cosine).sum())
        if self._mirrored and low <= -self._duplicate_cosine:
            self.near_duplicates += int((cos <= -self._duplicate_cosine).sum())

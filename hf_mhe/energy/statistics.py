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
from hf_mhe.energy.rows import check_weight, row_chunks, unit_rows
from hf_mhe.energy.walks.blocked import Observer, walk
from hf_mhe.energy.walks.close_pairs import coincident_below, squared_chords
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
        MHEError: wrong rank or dtype, a value that is not finite, fewer than two live neurons, or an option out of its
            range.
    """
    duplicate_cosine = check_duplicate_cosine(duplicate_cosine)
    bins = check_integer("bins", bins, at_least=1, right="at least 1")
    check_weight(weight, ranks=(2,))
    rows = unit_rows(weight, product_dtype(weight), dead="skip")
    source = weight if rows.live is None else weight[rows.live]
    duplicates = _Duplicates(duplicate_cosine, weight.dtype, rows.unit, source, mirrored=potential.space == "half")
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


def check_duplicate_cosine(value: object) -> float:
    """The cosine from which on two neurons are near-duplicates, as a number in (0, 1].

    A right angle and what lies beyond are no limits: of random neurons every second pair would be a duplicate, and in
    half space, where the absolute cosine counts, all of them.

    Raises:
        MHEError: not a number, or out of this range.
    """
    check_number("duplicate_cosine", value, above=0, at_most=1, right="a number above 0 and at most 1")
    return float(value)  # type: ignore[arg-type]


class _Both(NamedTuple):
    """Two observers of one walk."""

    first: Observer
    second: Observer

    def observe(self, cos: Tensor, panel: Panel) -> None:
        self.first.observe(cos, panel)
        self.second.observe(cos, panel)


class _Cosines:
    """The observer: nearest neighbours, extremes, near-duplicates and the histogram."""

    def __init__(self, bins: int, unit: Tensor, duplicates: _Duplicates) -> None:
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


# Note [At the threshold]
# A cosine out of a float32 product is right to a few 1e-7, so a threshold of 1 loses copies that came out as
# 0.9999999, and any threshold counts the pairs next to it by the order in which the product was summed. So the pairs
# within this of the threshold are recomputed in float64 from their rows, which costs O(d) a pair; away from 1 there
# are hardly any. A pair that coincides reaches every threshold: at 1 the two counts are the same number. Rejected:
# a threshold lowered by the error, which counts pairs that are none; float64 products, at twice the time.
_BAND = {torch.float32: 4e-6, torch.float64: 1e-13}
# Nor does the last place of a float64 decide about a pair that lies at a threshold such as 0.8, which has no exact
# float: of a squared chord.
_ROUNDING = 1e-15
_PAIRS_AT_A_TIME = 1 << 21  # elements of one temporary: 16 MiB


class _Duplicates:
    """How many pairs have a cosine of at least a threshold; see Note [At the threshold]."""

    def __init__(self, threshold: float, stored: torch.dtype, unit: Tensor, source: Tensor, *, mirrored: bool) -> None:
        self.count = 0
        self._threshold, self._mirrored = threshold, mirrored
        self._band = _BAND[unit.dtype]
        self._rows = unit if unit.dtype == torch.float64 else source
        coincident = coincident_below(stored)
        self._limit = coincident if threshold == 1 else max(2 - 2 * threshold + _ROUNDING, coincident)

    def see(self, cos: Tensor, panel: Panel, low: float, high: float) -> None:
        """Count the pairs of a panel, of which `low` and `high` are the extremes."""
        if high >= self._threshold - self._band:
            self._add(cos, panel, opposite=False)
        if self._mirrored and low <= self._band - self._threshold:
            self._add(-cos, panel, opposite=True)

    def _add(self, cos: Tensor, panel: Panel, *, opposite: bool) -> None:
        within, beyond = cos >= self._threshold - self._band, cos > self._threshold + self._band
        close = within & ~beyond
        if panel.diagonal:  # which shows each pair twice
            beyond, close = beyond.triu(1), close.triu(1)
        self.count += int(beyond.sum())
        row, column = close.nonzero(as_tuple=True)
        step = max(1, _PAIRS_AT_A_TIME // self._rows.shape[1])
        for first, second in zip((row + panel.row).split(step), (column + panel.column).split(step), strict=True):
            near, far = squared_chords(self._rows, first, second)
            self.count += int(((far if opposite else near) <= self._limit).sum())

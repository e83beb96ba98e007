"""Pairs of neurons that nearly coincide: how many, which are the closest, and the clusters that they make up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_mhe.checks import check_integer, check_number
from hf_mhe.energy.walks.close_pairs import coincident_below, squared_chords
from hf_mhe.energy.walks.panels import Panel

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
_ELEMENTS_AT_A_TIME = 1 << 21  # of one temporary: 16 MiB

# Note [Pairs of a collapsed layer]
# Half a million equal rows are 10^11 pairs. So none is kept but the closest few, and what one part of a panel yields
# is joined to the clusters before the next is looked at. A part holds this many pairs, as a panel does on a CPU. Where
# more than this share of them are within the error of a product, the part is multiplied again in float64, whose error
# is forty million times smaller: neurons that all lie within a degree of each other are then told apart at the price
# of a product. Rejected: a list of pairs up to a limit, which gives clusters that depend on the order of the walk.
_PAIRS_OF_A_PART = 1 << 19
_SHARE_THAT_IS_TOO_MANY = 1 / 64
_FEW = 256  # are recomputed one by one whatever their share


def check_duplicate_cosine(value: object) -> float:
    """The cosine from which on two neurons are near-duplicates, as a number in (0, 1].

    A right angle and what lies beyond are no limits: of random neurons every second pair would be a duplicate, and in
    half space, where the absolute cosine counts, all of them.

    Raises:
        MHEError: not a number, or out of this range.
    """
    check_number("duplicate_cosine", value, above=0, at_most=1, right="a number above 0 and at most 1")
    return float(value)  # type: ignore[arg-type]


def check_max_pairs(value: object) -> int:
    """How many pairs may be listed, as an integer of at least 0.

    Raises:
        MHEError: not an integer, or a negative one.
    """
    return check_integer("max_pairs", value, at_least=0, right="at least 0")


class NearDuplicates:
    """The near-duplicate pairs of a walk: their number, the closest of them, and the clusters that they join.

    Rows are numbered as in `unit`. Memory is `O(n)`, whatever the number of pairs; see Note [Pairs of a collapsed
    layer] and Note [At the threshold].
    """

    def __init__(
        self,
        threshold: float,
        stored: torch.dtype,
        unit: Tensor,
        source: Tensor,
        *,
        mirrored: bool,
        max_pairs: int,
    ) -> None:
        """Prepare to see the panels of a walk.

        Args:
            threshold: the cosine that near-duplicates reach.
            stored: the dtype that the weight came in, which decides what coincides.
            unit: `(n, d)`, the rows of length one that the products are of.
            source: `(n, d)`, the same rows as they came.
            mirrored: whether a neuron and its opposite are the same, as in half space.
            max_pairs: how many pairs to keep.
        """
        self.count = 0
        self._threshold, self._mirrored = threshold, mirrored
        self._band = _BAND[unit.dtype]
        self._rows = unit if unit.dtype == torch.float64 else source
        self._coincident = coincident_below(stored)
        self._limit = self._coincident if threshold == 1 else max(2 - 2 * threshold + _ROUNDING, self._coincident)
        self._closest = _ClosestPairs(max_pairs)
        self._clusters = _Clusters(len(unit))

    def see(self, cos: Tensor, panel: Panel, low: float, high: float) -> None:
        """Add the pairs of a panel of cosines, of which `low` and `high` are the extremes."""
        for sign, extreme in ((1, high), (-1, -low)) if self._mirrored else ((1, high),):
            if extreme >= self._threshold - self._band:
                for part in _parts(panel):
                    self._add(cos[part.row - panel.row : part.row_end - panel.row], part, sign, self._band)

    def pairs(self) -> tuple[tuple[int, int, float], ...]:
        """The closest pairs `(i, j, cosine)`, i < j, the largest absolute cosine first, then by `(i, j)`."""
        return self._closest.listed()

    def clusters(self) -> tuple[tuple[int, ...], ...]:
        """The neurons that near-duplicate pairs connect, the largest cluster first, then by its first neuron."""
        return self._clusters.listed() if self.count else ()

    def _add(self, cos: Tensor, part: Panel, sign: int, band: float) -> None:
        """Add the pairs of a part of a panel whose `sign` times the cosine reaches the threshold."""
        reach = self._threshold - band
        row, column = (cos >= reach if sign > 0 else cos <= -reach).nonzero(as_tuple=True)
        pairs = _Pairs(row + part.row, column + part.column, cos[row, column] * sign)
        if part.row < part.column_end and part.column < part.row_end:  # which shows each pair twice, or a neuron
            pairs = pairs.at(pairs.row < pairs.column)
        close = pairs.value <= self._threshold + band
        if self._too_many(close, part, band):
            self._add(self._product(part), part, sign, _BAND[torch.float64])
            return
        reaching = ~close
        reaching[close] = self._squared_chords(pairs.at(close), sign) <= self._limit
        pairs = pairs.at(reaching)
        self.count += len(pairs.row)
        self._clusters.join(pairs, part)
        self._list(pairs, part, sign, band)

    def _list(self, pairs: _Pairs, part: Panel, sign: int, band: float) -> None:
        """Offer pairs, whose cosines are right to the band, to the list of the closest."""
        step = max(1, _ELEMENTS_AT_A_TIME // self._rows.shape[1])
        while len(pairs.row):
            chosen = self._closest.may_take(pairs, band)
            if self._too_many(chosen, part, band):
                cos, band = self._product(part), _BAND[torch.float64]
                pairs = pairs._replace(value=cos[pairs.row - part.row, pairs.column - part.column] * sign)
                continue
            pairs = pairs.at(chosen)
            near = self._squared_chords(pairs.at(slice(step)), sign)
            exact = (1 - 0.5 * near).masked_fill(near <= self._coincident, 1.0)
            self._closest.offer(pairs.at(slice(step))._replace(value=sign * exact))
            pairs = pairs.at(slice(step, None))

    def _squared_chords(self, pairs: _Pairs, sign: int) -> Tensor:
        """Of each pair, or of one neuron and the opposite of the other, in float64."""
        found = [torch.empty(0, dtype=torch.float64, device=pairs.row.device)]
        step = max(1, _ELEMENTS_AT_A_TIME // self._rows.shape[1])
        for row, column in zip(pairs.row.split(step), pairs.column.split(step), strict=True):
            found.append(squared_chords(self._rows, row, column)[0 if sign > 0 else 1])
        return torch.cat(found)

    def _too_many(self, chosen: Tensor, part: Panel, band: float) -> bool:
        """Whether these are better told apart by a product in float64 than one by one."""
        if band <= _BAND[torch.float64]:
            return False
        most = max(_FEW, int(_SHARE_THAT_IS_TOO_MANY * part.rows * part.columns))
        return len(chosen) > most and int(chosen.sum()) > most

    def _product(self, part: Panel) -> Tensor:
        """The cosines of a part in float64."""
        rows, columns = (
            torch.nn.functional.normalize(self._rows[start:stop].double(), dim=1, eps=0.0)
            for start, stop in ((part.row, part.row_end), (part.column, part.column_end))
        )
        return rows @ columns.t()


class _Pairs(NamedTuple):
    """Pairs of a part of a panel: the numbers of their neurons, `(k,)` each, and what is known of their cosines."""

    row: Tensor
    column: Tensor
    value: Tensor

    def at(self, where: Tensor | slice) -> _Pairs:
        return _Pairs(self.row[where], self.column[where], self.value[where])


def _parts(panel: Panel) -> Iterator[Panel]:
    step = max(1, _PAIRS_OF_A_PART // panel.columns)
    for row in range(panel.row, panel.row_end, step):
        yield panel._replace(row=row, row_end=min(row + step, panel.row_end))


class _ClosestPairs:
    """The pairs with the largest absolute cosine, at most `most`, ties in the order of their rows."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._first = self._second = np.empty(0, dtype=np.int64)
        self._cosine = np.empty(0)

    def may_take(self, pairs: _Pairs, band: float) -> Tensor:
        """Which pairs may belong on the list, if their cosines are right to the band."""
        if self._most == 0:
            return torch.zeros_like(pairs.row, dtype=torch.bool)
        if len(self._cosine) < self._most:
            return torch.ones_like(pairs.row, dtype=torch.bool)
        worst, i, j = abs(float(self._cosine[-1])), int(self._first[-1]), int(self._second[-1])
        enough = pairs.value >= worst - band
        if worst < 1:
            return enough
        first, second = torch.minimum(pairs.row, pairs.column), torch.maximum(pairs.row, pairs.column)
        return enough & ((first < i) | ((first == i) & (second < j)))

    def offer(self, pairs: _Pairs) -> None:
        """Put those of the pairs on the list that belong there; their cosines are exact."""
        row, column, value = (each.cpu().numpy() for each in pairs)
        first = np.concatenate((self._first, np.minimum(row, column)))
        second = np.concatenate((self._second, np.maximum(row, column)))
        cosine = np.concatenate((self._cosine, value))
        order = np.lexsort((second, first, -np.abs(cosine)))[: self._most]
        self._first, self._second, self._cosine = first[order], second[order], cosine[order]

    def listed(self) -> tuple[tuple[int, int, float], ...]:
        return tuple(zip(self._first.tolist(), self._second.tolist(), self._cosine.tolist(), strict=True))


class _Clusters:
    """The connected components of a graph whose edges come in batches: union-find, a batch at a time.

    Each neuron points to one that is no later in its cluster; the first of a cluster points to itself.
    """

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)

    def join(self, pairs: _Pairs, part: Panel) -> None:
        """Join the clusters of each pair of a part of a panel."""
        if len(pairs.row) > part.rows + part.columns and self._is_one_cluster(part):
            return
        left, right = pairs.row.cpu().numpy(), pairs.column.cpu().numpy()
        while True:
            left, right = self._first_of(left), self._first_of(right)
            apart = left != right
            if not apart.any():
                return
            left, right = left[apart], right[apart]
            # What a later neuron has in common with others than the first of them is joined in the next round.
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def listed(self) -> tuple[tuple[int, ...], ...]:
        rows = np.arange(len(self._parent))
        leaders = self._first_of(rows)
        clustered = rows[np.bincount(leaders, minlength=len(rows))[leaders] > 1]
        clustered = clustered[np.argsort(leaders[clustered], kind="stable")]
        ends = np.flatnonzero(np.diff(leaders[clustered])) + 1
        parts = np.split(clustered, ends) if len(clustered) else []
        return tuple(tuple(part.tolist()) for part in sorted(parts, key=lambda part: (-len(part), part[0])))

    def _is_one_cluster(self, part: Panel) -> bool:
        leaders = self._first_of(np.r_[part.row : part.row_end, part.column : part.column_end])
        return bool((leaders == leaders[0]).all())

    def _first_of(self, rows: np.ndarray) -> np.ndarray:
        """The first neuron of each row's cluster; ways there are halved again and again as they are gone."""
        while True:
            parents = self._parent[rows]
            before = self._parent[parents]
            if np.array_equal(parents, before):
                return parents
            self._parent[rows] = before

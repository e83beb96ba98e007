"""The energies of several potentials, from the same cosines."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_mhe.choices import Distance, Space
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.walks.blocked import cosines_of, exact_unit_rows
from hf_mhe.energy.walks.close_pairs import ClosePairs, coincident_below, extremes, squared_chords_of
from hf_mhe.energy.walks.closed_forms import evaluate_, fill_diagonal_, is_of_angles, values_of_angles_
from hf_mhe.energy.walks.panels import PanelBatch
from hf_mhe.energy.walks.small_cosines import power_series, power_sums_, series_that_pays
from hf_mhe.energy.workspace import scratch

# The twelve of the paper: by exponent, then distance (chords before angles), then space (full before half).
# Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, section 3.
_DISTANCES: tuple[Distance, ...] = ("euclidean", "angular")
_SPACES: tuple[Space, ...] = ("full", "half")
VARIANTS: tuple[Potential, ...] = tuple(
    Potential(s, distance, space) for s in (0, 1, 2) for distance in _DISTANCES for space in _SPACES
)

# Sums of powers take as long as so many of the fastest potentials.
_AS_MANY_AS_POWERS = 3


class Energies:
    """An observer of a walk: the sums of any number of potentials over its pairs, coincident ones left out.

    Where all cosines of a piece are small, every potential is a combination of the same sums of powers; elsewhere the
    angular ones share the angles, and all of them the chords of the close pairs, which are recomputed in float64. In
    half space `f(c)` and `f(-c)` are one function, whose form shares their work.
    """

    def __init__(self, potentials: Iterable[Potential], unit: Tensor, weight: Tensor) -> None:
        self._n, self._weight = len(unit), weight
        self._values = dict.fromkeys(potentials, 0.0)
        self._coincident: dict[Space, int] = {"full": 0, "half": 0}
        self._exact_unit = unit if unit.dtype == torch.float64 else None
        # A pair is close for all of them where it is for one: in either direction, up to the largest of their limits.
        self._widest = Potential(space="half", closest=max((each.closest for each in self._values), default=0.0))
        pays = len(self._values) > _AS_MANY_AS_POWERS or any(series_that_pays(each) for each in self._values)
        pays = pays and unit.dtype == torch.float32
        self._series = {each: power_series(each) for each in self._values} if pays else {}

    def mean(self, potential: Potential) -> float:
        """The mean energy of one of them, once every panel was seen; NaN if every pair coincides."""
        value, coincident = self._values[potential], self._coincident[potential.space]
        return potential.mean_of(value, self._n, coincident=coincident)

    def observe(self, cos: Tensor, piece: PanelBatch, extremes: tuple[float, float]) -> None:
        """Add a piece, of which `extremes` are the smallest and the largest cosine."""
        by_powers = {
            potential: series for potential, series in self._series.items() if series and series.holds(extremes)
        }
        if by_powers:
            powers = power_sums_(_room("copy", cos).copy_(cos), piece.pairs, odd=True)
            for potential, series in by_powers.items():
                self._values[potential] += piece.orders * series.total(powers)
        others = [each for each in self._values if each not in by_powers]
        if others:
            self._add(others, cos, piece, extremes)

    def _add(self, potentials: list[Potential], cos: Tensor, piece: PanelBatch, known: tuple[float, float]) -> None:
        close = ClosePairs.find(cos, piece, self._widest, known)
        if close is not None and close.too_many(cos.numel()) and cos.dtype != torch.float64:
            if self._exact_unit is None:
                self._exact_unit = exact_unit_rows(self._weight)
            for exact, panel in cosines_of(piece, self._exact_unit):
                self._add(potentials, exact, panel, extremes(exact, two_sided=True))
            return
        angles: Tensor | None = None
        for potential in potentials:
            copy = _room("copy", cos)
            if is_of_angles(potential, cos.dtype):
                if angles is None:
                    angles = torch.arccos(cos, out=_room("angles", cos))
                block = values_of_angles_(potential, copy.copy_(angles))
            else:
                copy.copy_(cos)
                if close is not None:
                    close.take_out_(copy)
                block = evaluate_(potential, copy, None)
            if close is not None:
                block.take_out_(close.take_out_)
            if piece.first.diagonal:
                block.take_out_(fill_diagonal_)
            self._values[potential] += piece.orders * block.total()
        if close is not None:
            self._add_close_pairs(potentials, close)

    def _add_close_pairs(self, potentials: list[Potential], close: ClosePairs) -> None:
        near, far = squared_chords_of(close, self._weight if self._exact_unit is None else self._exact_unit)
        limit = coincident_below(self._weight.dtype)
        coincide = {"full": near <= limit, "half": torch.minimum(near, far) <= limit}
        for space in self._coincident:
            self._coincident[space] += int(coincide[space].sum())
        for potential in potentials:
            value, _ = potential.from_chords(near, far)
            self._values[potential] += 2 * float(value.masked_fill(coincide[potential.space], 0.0).sum())


def _room(name: str, like: Tensor) -> Tensor:
    return scratch(f"energies {name}", like.numel(), like.dtype, like.device).view(like.shape)

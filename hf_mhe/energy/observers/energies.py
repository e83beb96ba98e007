"""The energies of several potentials, from the same cosines."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_mhe.choices import Distance, Space
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.walks.blocked import PanelSums
from hf_mhe.energy.walks.closed_forms import is_of_angles
from hf_mhe.energy.walks.panels import PanelBatch
from hf_mhe.energy.walks.small_cosines import power_series, power_sums_, series_that_pays
from hf_mhe.energy.walks.workspace import scratch

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
    angular ones share the angles. In half space `f(c)` and `f(-c)` are one function, whose form shares their work.
    """

    def __init__(self, potentials: Iterable[Potential], unit: Tensor, weight: Tensor) -> None:
        self._n = len(unit)
        self._sums = {
            each: PanelSums(weight, unit, each, gradient=False, leave_out_coincident=True) for each in potentials
        }
        pays = len(self._sums) > _AS_MANY_AS_POWERS or any(series_that_pays(each) for each in self._sums)
        pays = pays and unit.dtype == torch.float32
        self._series = {each: power_series(each) for each in self._sums} if pays else {}

    def mean(self, potential: Potential) -> float:
        """The mean energy of one of them, once every panel was seen; NaN if every pair coincides."""
        pairs = self._sums[potential].result()
        return potential.mean_of(pairs.value, self._n, coincident=pairs.coincident)

    def observe(self, cos: Tensor, piece: PanelBatch, extremes: tuple[float, float]) -> None:
        """Add a piece, of which `extremes` are the smallest and the largest cosine."""
        powers: list[float] | None = None
        angles: Tensor | None = None
        for potential, sums in self._sums.items():
            copy = _room("copy", cos)
            series = self._series.get(potential)
            if series is not None and series.holds(extremes):
                if powers is None:
                    powers = power_sums_(copy.copy_(cos), piece.pairs, odd=True)
                sums.add_powers(piece, series, powers)
            elif is_of_angles(potential, cos.dtype):
                if angles is None:
                    angles = torch.arccos(cos, out=_room("angles", cos))
                sums.add_values(piece, cos, extremes, copy.copy_(angles))
            else:
                sums.add_values(piece, copy.copy_(cos), extremes)


def _room(name: str, like: Tensor) -> Tensor:
    return scratch(f"energies {name}", like.numel(), like.dtype, like.device).view(like.shape)

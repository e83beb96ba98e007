"""How crowded neurons are: the means over their pairs from which the equivalent dimension comes."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.reference.crowding import Z
from hf_mhe.energy.walks.blocked import cosines_of, exact_unit_rows
from hf_mhe.energy.walks.close_pairs import ClosePairs, squared_chords_of
from hf_mhe.energy.walks.panels import PanelBatch
from hf_mhe.energy.workspace import scratch

_BOTH_ENDS = Potential(space="half")  # pairs near -1 are as close as pairs near 1


class Excess:
    """An observer of a walk: the means of `c²` and of `g(c) = z c² / (1 − z c²)` over pairs, coincident ones included.

    Pairs that are too close for float32 products, or too nearly opposite, are recomputed in float64.
    """

    def __init__(self, unit: Tensor, weight: Tensor) -> None:
        self._weight = weight
        self._exact_unit = unit if unit.dtype == torch.float64 else None
        self._pairs = len(unit) * (len(unit) - 1) // 2
        self._sum = self._squares = 0.0

    @property
    def mean(self) -> float:
        """Over the pairs of all panels, once every panel was seen."""
        return self._sum / self._pairs

    @property
    def mean_square(self) -> float:
        """The mean of `c²` over the same pairs."""
        return self._squares / self._pairs

    def observe(self, cos: Tensor, piece: PanelBatch, extremes: tuple[float, float]) -> None:
        """Add a piece, of which `extremes` are the smallest and the largest cosine."""
        close = ClosePairs.find(cos, piece, _BOTH_ENDS, extremes)
        if close is not None and close.too_many(cos.numel()):
            self._add_in_float64(cos, piece)
        else:
            self._add(cos, piece, close)

    def _add(self, cos: Tensor, piece: PanelBatch, close: ClosePairs | None = None) -> None:
        square = scratch("observed", cos.numel(), cos.dtype, cos.device).view(cos.shape)
        torch.square(cos, out=square)
        if close is not None:
            close.take_out_(square)
            self._add_close_pairs(close)
        self._squares += 0.5 * piece.orders * float(square.sum())
        # g / z = 1 / (1 / c² − z), of a right angle 1 / inf.
        self._sum += 0.5 * piece.orders * Z * float(square.reciprocal_().sub_(Z).reciprocal_().sum())

    def _add_close_pairs(self, close: ClosePairs) -> None:
        near, far = squared_chords_of(close, self._weight if self._exact_unit is None else self._exact_unit)
        square = 1 - 0.25 * near * far  # c², with sin² from the two chords
        self._squares += float(square.sum())
        self._sum += float((Z * square / (1 - Z * square)).sum())

    def _add_in_float64(self, cos: Tensor, piece: PanelBatch) -> None:
        # g is bounded, and a product in float64 right to its last places wherever a pair lies.
        if cos.dtype == torch.float64:
            self._add(cos, piece)
            return
        if self._exact_unit is None:
            self._exact_unit = exact_unit_rows(self._weight)
        for exact, panel in cosines_of(piece, self._exact_unit):
            self._add(exact, panel)

"""Nearest neighbours, extremes and the histogram of the cosines between neurons."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_mhe.energy.walks.closed_forms import fill_diagonal_
from hf_mhe.energy.walks.panels import PanelBatch
from hf_mhe.energy.workspace import scratch


class Cosines:
    """An observer of a walk: each neuron's largest cosine, the smallest of all, and how many fall in each bin.

    Attributes:
        nearest: `(n,)`, in the dtype of the products.
        smallest: the smallest cosine.
    """

    def __init__(self, bins: int, unit: Tensor) -> None:
        self.nearest = torch.full((len(unit),), -1.0, dtype=unit.dtype, device=unit.device)
        self.smallest = 1.0
        self._histogram = Histogram(bins, unit.device)

    @property
    def histogram(self) -> Tensor:
        """`(bins,)` int64, unordered pairs per bin of equal width over [-1, 1]."""
        return self._histogram.counts()

    def observe(self, cos: Tensor, piece: PanelBatch) -> tuple[float, float]:
        """Look at a piece, and return its extremes; the diagonal is no pair, and is left as it was."""
        diagonal = piece.first.diagonal
        if diagonal:
            fill_diagonal_(cos, -1.0)
        across = cos.amax(-1)
        high = float(across.amax())
        self._raise_nearest(piece.left, across)
        if diagonal:
            fill_diagonal_(cos, 1.0)
        else:
            self._raise_nearest(piece.right, cos.amax(-2))
        low = float(cos.amin())
        self.smallest = min(self.smallest, low)
        if diagonal:
            fill_diagonal_(cos)
            self._histogram.add(cos.triu(1), zeros=piece.elements - piece.pairs // 2)
        else:
            self._histogram.add(cos)
        return low, high

    def _raise_nearest(self, side: Callable[[Tensor], Tensor], cosines: Tensor) -> None:
        part = side(self.nearest.unsqueeze(1)).squeeze(-1)
        torch.maximum(part, cosines, out=part)


# Note [Histogram]
# A bin is a multiplication and a conversion to an integer, which vector registers do; adding one to its count is a
# load and a store, one after the other on one thread, and the most of it. So two pairs are counted together, as one
# number out of the square of the bins: half as many, and seldom the same twice in a row, which has to wait for the
# store before. Their sums are taken at the end. `torch.histc` takes five times as long. Rejected: three and more
# together where few bins occur, which saves less than its calls take; comparisons with the edges between the extremes,
# whose number depends on the layer.
_MOST_IN_TWOS = 1 << 15  # numbers, in int16, whose counts a second-level cache holds


class Histogram:
    """Counts per bin of equal width over [-1, 1]; what rounding has carried beyond is in the last and the first."""

    def __init__(self, bins: int, device: torch.device) -> None:
        self._bins, self._zeros = bins, 0
        self._span = bins + 1  # a cosine of 1 is at the upper edge
        self._in_twos = self._span**2 <= _MOST_IN_TWOS
        self._singles = torch.zeros(self._span, dtype=torch.int64, device=device)
        self._twos = torch.zeros(self._span**2 if self._in_twos else 0, dtype=torch.int64, device=device)

    def add(self, cos: Tensor, *, zeros: int = 0) -> None:
        """Count a block, of which that many zeros are no cosines."""
        self._zeros += zeros
        half, size = 0.5 * self._bins, cos.numel()
        scaled = scratch("observed", size, cos.dtype, cos.device)
        torch.add(torch.scalar_tensor(half, dtype=cos.dtype, device="cpu"), cos.view(-1), alpha=half, out=scaled)
        which = scratch("bins", size, torch.int16 if self._in_twos else torch.int32, cos.device).copy_(scaled)
        middle = size // 2 if self._in_twos else 0
        if middle:
            two = which[:middle].add_(which[middle : 2 * middle], alpha=self._span)
            self._twos += torch.bincount(two, minlength=len(self._twos))
        if 2 * middle < size:
            self._singles += torch.bincount(which[2 * middle :], minlength=self._span)

    def counts(self) -> Tensor:
        """`(bins,)` int64, of all that was added."""
        counts = self._singles.clone()
        if self._in_twos:
            twos = self._twos.view(self._span, self._span)
            counts += twos.sum(0) + twos.sum(1)
        counts[-2] += counts[-1]
        counts[self._bins // 2] -= self._zeros
        return counts[:-1]

"""Nearest neighbours, extremes and the histogram of the cosines between neurons."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_mhe.energy.walks.closed_forms import fill_diagonal_
from hf_mhe.energy.walks.panels import PanelBatch
from hf_mhe.energy.walks.workspace import scratch


class Cosines:
    """An observer of a walk: each neuron's largest cosine, the smallest of all, and how many fall in each bin.

    Attributes:
        nearest: `(n,)`, in the dtype of the products.
        smallest: the smallest cosine.
        histogram: `(bins,)` int64, unordered pairs per bin of equal width over [-1, 1].
    """

    def __init__(self, bins: int, unit: Tensor) -> None:
        self.nearest = torch.full((len(unit),), -1.0, dtype=unit.dtype, device=unit.device)
        self.histogram = torch.zeros(bins, dtype=torch.int64, device=unit.device)
        self.smallest = 1.0

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
            self._count(cos.triu(1), high)
            zeros = piece.elements - piece.pairs // 2
            self.histogram[len(self.histogram) // 2] -= zeros
        else:
            self._count(cos, high)
        return low, high

    def _raise_nearest(self, side: Callable[[Tensor], Tensor], cosines: Tensor) -> None:
        part = side(self.nearest.unsqueeze(1)).squeeze(-1)
        torch.maximum(part, cosines, out=part)

    # Note [Histogram]
    # A bin is a multiplication and a conversion to an integer, which vector registers do; adding one to its count is a
    # load and a store, one after the other, and the most of it. So two pairs go together, as one number of bins²: half
    # as many, and seldom the same twice in a row, which has to wait for the store before. A quarter of the time of
    # `torch.histc`, which on two threads adds to two histograms at once, and still half of that. Rejected: comparisons
    # with the edges between the extremes, whose number depends on the layer.
    def _count(self, cos: Tensor, high: float) -> None:
        bins, half = len(self.histogram), 0.5 * len(self.histogram)
        size = cos.numel()
        scaled = scratch("observed", size, cos.dtype, cos.device)
        torch.add(torch.scalar_tensor(half, dtype=cos.dtype), cos.view(-1), alpha=half, out=scaled)
        which = scratch("bins", size, torch.int16, cos.device).copy_(scaled)
        if high > _ALMOST_ONE:  # rounding may carry a cosine beyond the last bin
            which.clamp_(max=bins - 1)
        middle = size // 2 if bins <= _MOST_TWICE else 0
        if middle:
            two = which[:middle].add_(which[middle : 2 * middle], alpha=bins)
            counts = torch.bincount(two, minlength=bins * bins).view(bins, bins)
            self.histogram += counts.sum(0).add_(counts.sum(1))
        if 2 * middle < size:
            self.histogram += torch.bincount(which[2 * middle :], minlength=bins)


_ALMOST_ONE = 1 - 1e-6
_MOST_TWICE = 128  # bins, up to which the squared number of them stays in the cache

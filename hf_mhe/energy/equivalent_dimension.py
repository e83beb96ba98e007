"""How crowded the rows of a weight are, as the dimension in which random directions would be as crowded."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import product_dtype, without_autocast
from hf_mhe.energy.reference.crowding import Z, dimension_of_excess
from hf_mhe.energy.rows import DeadRows, check_weight, unit_rows
from hf_mhe.energy.walks.close_pairs import ClosePairs, squared_chords
from hf_mhe.energy.walks.panels import Panel, PanelBatch, panels
from hf_mhe.energy.walks.workspace import scratch

_BOTH_ENDS = Potential(space="half")  # pairs near -1 are as close as pairs near 1
_PAIRS_AT_A_TIME = 1 << 21  # elements of one temporary: 16 MiB


@torch.no_grad()
@without_autocast
def equivalent_dimension(weight: Tensor, *, dead: DeadRows = "skip") -> float:
    """The dimension in which independent random directions would be as crowded as the rows of `weight`.

    About d for random rows, however many; 1 where all lie on one line; `inf` where all are orthogonal. Rotation and
    the lengths and signs of rows leave it alone; each copy of a row lowers it.

    Example:
        >>> import torch
        >>> from hf_mhe.energy import equivalent_dimension
        >>> rows = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
        >>> round(equivalent_dimension(rows))
        64
        >>> round(equivalent_dimension(rows[:, :8]), 1)
        8.0

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        dead: what to do with rows of zeros, which have no direction: `"skip"`, to leave them out, or `"error"`.

    Raises:
        MHEError: wrong rank or dtype, a value that is not finite, or fewer than two live neurons.

    Source: Note [Equivalent dimension], in `hf_mhe.energy.reference.crowding`.
    """
    check_weight(weight, ranks=(2,))
    rows = unit_rows(weight, product_dtype(weight), dead=dead)
    unit = rows.unit
    excess = Excess(unit, weight if rows.live is None else weight[rows.live])
    for panel in panels(len(unit), unit.device):
        cos = unit[panel.row : panel.row_end] @ unit[panel.column : panel.column_end].t()
        if panel.diagonal:
            cos.fill_diagonal_(0)
        excess.observe(cos, panel)
    return dimension_of_excess(excess.mean)


class Excess:
    """An observer of a walk: the means of `c²` and of `g(c) = z c² / (1 − z c²)` over pairs, coincident ones included.

    Pairs that are too close for float32 products, or too nearly opposite, are recomputed in float64.
    """

    def __init__(self, unit: Tensor, weight: Tensor) -> None:
        self._rows = unit if unit.dtype == torch.float64 else weight
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

    def observe(self, cos: Tensor, panel: Panel) -> None:
        """Add a panel; a diagonal one has each pair twice, and zeros on its diagonal."""
        square, rest = (scratch(f"excess {k}", cos.numel(), cos.dtype, cos.device).view(cos.shape) for k in range(2))
        torch.square(cos, out=square)
        close = ClosePairs.find(cos, PanelBatch(panel), _BOTH_ENDS)
        if close is not None:
            close.take_out_(square)
            self._add_close_pairs(close.first, close.second)
        times = 0.5 if panel.diagonal else 1.0
        self._squares += times * float(square.sum())
        torch.mul(square, -Z, out=rest).add_(1)
        self._sum += times * Z * float(square.div_(rest).sum())

    def _add_close_pairs(self, first: Tensor, second: Tensor) -> None:
        step = max(1, _PAIRS_AT_A_TIME // self._rows.shape[1])
        for some, others in zip(first.split(step), second.split(step), strict=True):
            near, far = squared_chords(self._rows, some, others)
            square = 1 - 0.25 * near * far  # c², with sin² from the two chords
            self._squares += float(square.sum())
            self._sum += float((Z * square / (1 - Z * square)).sum())

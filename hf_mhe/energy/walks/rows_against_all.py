"""Some rows against all of them, exactly: those that one of several processes owns, or those that were sampled.

The owner of rows needs the gradient on these rows alone, and it has to be the whole sum's; a sample's sum is
differentiated with respect to all rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.rows import project_
from hf_mhe.energy.walks.blocked import PairSum, PanelSums, walk
from hf_mhe.energy.walks.close_pairs import ClosePairs, sum_close_pairs
from hf_mhe.energy.walks.closed_forms import evaluate_
from hf_mhe.energy.walks.panels import Panel, PanelBatch, block_shape, bounds


def own_rows_against_all(
    unit: Tensor, weight: Tensor, start: int, stop: int, potential: Potential, *, gradient: bool
) -> PairSum:
    """`sum F(c_ij)` over ordered pairs with `i` in `[start, stop)`, and the gradient of the whole sum on those rows.

    Args:
        unit: `(n, d)`, float32 or float64, rows of length one.
        weight: `(n, d)`, the rows as they came, any floating dtype: close pairs are recomputed from them in float64.
        start, stop: the own rows.
        potential: the pair function.
        gradient: whether to compute the gradient in the same pass.

    Returns:
        `PairSum`, whose gradient `(stop - start, d)` is that of `sum_{i != j} F(c_ij)` over *all* ordered pairs with
        respect to the own unit rows, not yet projected on the sphere.

    Work: `m n d + (n - m / 2) m d` multiplications for m own rows of n; the pairs among the own rows are walked once.
    """
    # Note [Two parts]
    # The pairs among the own rows are a whole exact walk of their own, which visits each pair once. Against the rest,
    # every pair is visited by the owners of both of its rows: the price of having nothing to send back.
    if start == stop:
        return PairSum(0.0, unit.new_zeros(0, unit.shape[1]) if gradient else None, 0)
    among = walk(unit[start:stop], weight[start:stop], potential, gradient=gradient)
    beside = _Beside(unit, weight, start, stop, potential, among.gradient)
    for panel in _panels(start, stop, len(unit), unit.device):
        beside.visit(panel)
    return PairSum(among.value + beside.value, among.gradient, 0)


def _panels(start: int, stop: int, n: int, device: torch.device) -> list[Panel]:
    """The own rows against the rest; no panel is diagonal, for the rest has none of the own rows."""
    height, width = block_shape(n, device)
    return [
        Panel(row, row_end, column, column_end)
        for row, row_end in bounds(start, stop, height)
        for begin, end in ((0, start), (stop, n))
        for column, column_end in bounds(begin, end, width)
    ]


class _Beside:
    """What the panels of the own rows against the rest add up to; `grad` `(m, d)` is added to in place."""

    def __init__(
        self, unit: Tensor, weight: Tensor, start: int, stop: int, potential: Potential, grad: Tensor | None
    ) -> None:
        self._unit, self._weight, self._potential = unit, weight, potential
        self._start, self._stop, self._grad = start, stop, grad
        self._buffers: list[Tensor] = []
        self.value = 0.0

    def visit(self, panel: Panel) -> None:
        """Add one panel."""
        size = panel.rows * panel.columns
        if not self._buffers or self._buffers[0].numel() < size:
            self._buffers = [self._unit.new_empty(size) for _ in range(1 if self._grad is None else 2)]
        cos, *spare = (buffer[:size].view(panel.rows, panel.columns) for buffer in self._buffers)
        torch.mm(self._unit[panel.row : panel.row_end], self._unit[panel.column : panel.column_end].t(), out=cos)
        close = ClosePairs.find(cos, PanelBatch(panel), self._potential)
        if close is not None and close.too_many(size) and cos.dtype != torch.float64:
            self._visit_in_float64(panel)
            return
        product = self._add(panel, cos, spare[0] if spare else None, close)
        if product is not None and self._grad is not None:
            slope, factor = product
            columns = self._unit[panel.column : panel.column_end]
            self._own(panel).addmm_(slope, columns, alpha=factor)

    def _visit_in_float64(self, panel: Panel) -> None:
        # Float64 products reach pairs a thousand times closer than float32 ones; see `blocked.py`. The product of the
        # slopes is nearly parallel to the neuron there: it is projected on the sphere before it is rounded.
        left, right = (
            torch.nn.functional.normalize(rows.double(), dim=1, eps=0.0)
            for rows in (self._weight[panel.row : panel.row_end], self._weight[panel.column : panel.column_end])
        )
        cos = left @ right.t()
        close = ClosePairs.find(cos, PanelBatch(panel), self._potential)
        product = self._add(panel, cos, None if self._grad is None else torch.empty_like(cos), close)
        if product is not None and self._grad is not None:
            slope, factor = product
            part = (slope @ right).mul_(factor)
            self._own(panel).add_(project_(part, left).to(self._grad.dtype))

    def _add(
        self, panel: Panel, cos: Tensor, spare: Tensor | None, close: ClosePairs | None
    ) -> tuple[Tensor, float] | None:
        """Add the values, and the close pairs entirely; return the slopes of the rest and their factor."""
        if close is not None:
            close.take_out_(cos)
        block = evaluate_(self._potential, cos, spare)
        if close is not None:
            block.take_out_(close.take_out_)
            self._add_close(close)
        self.value += block.total()
        # The pair (i, j) and the pair (j, i) both pull at the own row i.
        return None if block.slope is None else (block.slope, 2 * block.slope_factor)

    def _add_close(self, close: ClosePairs) -> None:
        # Only the rows that these pairs are made of, for a gradient of the few in place of one of all n.
        index, places = torch.unique(torch.cat((close.first, close.second)), return_inverse=True)
        first, second = places.split(len(close.first))
        part = None if self._grad is None else self._unit.new_zeros(len(index), self._unit.shape[1])
        few = ClosePairs(close.where, first, second)
        steps = close.second - close.first
        exact = sum_close_pairs(few, self._weight[index], self._potential, part, leave_out_below=None, steps=steps)
        self.value += 0.5 * exact.value  # it counts both orders
        if part is not None and self._grad is not None:
            own = (index >= self._start) & (index < self._stop)
            self._grad.index_add_(0, index[own] - self._start, part[own])

    def _own(self, panel: Panel) -> Tensor:
        assert self._grad is not None  # asked for by callers that have one
        return self._grad[panel.row - self._start : panel.row_end - self._start]


# Note [The sample first]
# With the sampled rows moved to the front, their ordered pairs with all rows are the symmetric square of the sample,
# both orders of each pair, and the rectangle of the sample against the rest, one order of each. The square
# is a whole exact walk of its own, half its cosines saved; the rectangle is the kind of panel that the exact walk has
# beside its diagonal, which counts both orders, so it is halved. Nothing here knows a formula.
def first_rows_against_all(
    unit: Tensor, weight: Tensor, rows: int, potential: Potential, *, gradient: bool
) -> PairSum:
    """`sum F(c_ij)` over ordered pairs with i among the first `rows`, with its gradient on all the unit rows."""
    sums = PanelSums(weight, unit, potential, gradient=gradient)
    buffers: list[Tensor] = []
    for batch in _rectangle(rows, len(unit), unit.device):
        buffers = buffers or [unit.new_empty(batch.elements) for _ in range(2 if gradient else 1)]
        cos, *spare = (buffer[: batch.elements].view(batch.shape) for buffer in buffers)
        torch.mm(batch.left(unit), batch.right(unit).t(), out=cos)
        sums.visit(batch, cos, spare[0] if spare else None, None)
    beside = sums.result()
    square = walk(unit[:rows], weight[:rows], potential, gradient=gradient)
    if beside.gradient is not None and square.gradient is not None:
        beside.gradient.mul_(0.5)[:rows] += square.gradient
    return PairSum(square.value + 0.5 * beside.value, beside.gradient, 0)


def _rectangle(rows: int, n: int, device: torch.device) -> Iterator[PanelBatch]:
    # The first panel is the largest.
    height, width = block_shape(n, device)
    for row, row_end in bounds(0, rows, height):
        for column, column_end in bounds(rows, n, width):
            panel = Panel(row, row_end, column, column_end)
            yield PanelBatch(panel, opens_rows=column == rows, opens_columns=row == 0)

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
    beside = _Beside(unit, weight, start, potential, among.gradient)
    for panel in _panels(start, stop, len(unit), unit.device):
        beside.visit(panel)
    return PairSum(among.value + beside.value, among.gradient, 0)


def own_rows_against_other_classes(
    unit: Tensor, weight: Tensor, start: int, stop: int, classes: Tensor, potential: Potential, *, gradient: bool
) -> PairSum:
    """`own_rows_against_all` over the pairs whose rows differ in `classes`, `(n,)` int64, alone."""
    # Note [Other classes]
    # Pairs of one class are taken out of each block before anything is computed of them. Rejected: the energy of all
    # pairs less that of each class, which is the difference of two large numbers where the rows of a class lie close
    # together, and of two infinities where they coincide. A pair of own rows is visited from both sides, which costs
    # one process a third more than the symmetric walk: it is simple, and no gradient goes to a column.
    grad = unit.new_zeros(stop - start, unit.shape[1]) if gradient else None
    beside = _Beside(unit, weight, start, potential, grad, classes)
    for panel in _panels(start, stop, len(unit), unit.device, with_own=True):
        beside.visit(panel)
    return PairSum(beside.value, grad, 0)


def _panels(start: int, stop: int, n: int, device: torch.device, *, with_own: bool = False) -> list[Panel]:
    """The own rows against the rest, or against all rows."""
    height, width = block_shape(n, device)
    return [
        Panel(row, row_end, column, column_end)
        for row, row_end in bounds(start, stop, height)
        for begin, end in (((0, n),) if with_own else ((0, start), (stop, n)))
        for column, column_end in bounds(begin, end, width)
    ]


class _Beside:
    """What panels of own rows against others add up to; the gradient on the own rows goes to `grad` `(m, d)`.

    Every ordered pair of an own row is visited once; with `classes` `(n,)` the pairs of one class do not count.
    """

    def __init__(
        self,
        unit: Tensor,
        weight: Tensor,
        start: int,
        potential: Potential,
        grad: Tensor | None,
        classes: Tensor | None = None,
    ) -> None:
        self._unit, self._weight, self._potential = unit, weight, potential
        self._start, self._grad, self._classes = start, grad, classes
        self._buffers: list[Tensor] = []
        self.value = 0.0

    def visit(self, panel: Panel) -> None:
        """Add one panel."""
        size = panel.rows * panel.columns
        if not self._buffers or self._buffers[0].numel() < size:
            self._buffers = [self._unit.new_empty(size) for _ in range(1 if self._grad is None else 2)]
        cos, *spare = (buffer[:size].view(panel.rows, panel.columns) for buffer in self._buffers)
        torch.mm(self._unit[panel.row : panel.row_end], self._unit[panel.column : panel.column_end].t(), out=cos)
        same = self._take_out_same_(panel, cos)
        close = self._find(cos, panel)
        if close is not None and close.too_many(size) and cos.dtype != torch.float64:
            self._visit_in_float64(panel)
            return
        product = self._add(cos, spare[0] if spare else None, close, same)
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
        same = self._take_out_same_(panel, cos)
        close = self._find(cos, panel)
        product = self._add(cos, None if self._grad is None else torch.empty_like(cos), close, same)
        if product is not None and self._grad is not None:
            slope, factor = product
            part = (slope @ right).mul_(factor)
            self._own(panel).add_(project_(part, left).to(self._grad.dtype))

    def _take_out_same_(self, panel: Panel, cos: Tensor) -> Tensor | None:
        """Where a block's pairs are of one class, as a mask; their cosines become harmless. None where none are."""
        if self._classes is None:
            return None
        rows, columns = self._classes[panel.row : panel.row_end], self._classes[panel.column : panel.column_end]
        same = rows.unsqueeze(1) == columns
        if not bool(same.any()):
            return None
        cos.masked_fill_(same, 0.0)
        return same

    def _find(self, cos: Tensor, panel: Panel) -> ClosePairs | None:
        # Apart from the rows by name, so that a square of own rows is not taken for one that shows each pair twice.
        n = len(self._unit)
        apart = panel._replace(column=panel.column + n, column_end=panel.column_end + n)
        close = ClosePairs.find(cos, PanelBatch(apart), self._potential)
        return None if close is None else close._replace(second=close.second - n)

    def _add(
        self, cos: Tensor, spare: Tensor | None, close: ClosePairs | None, same: Tensor | None
    ) -> tuple[Tensor, float] | None:
        """Add the values, and the close pairs entirely; return the slopes of the rest and their factor."""
        if close is not None:
            close.take_out_(cos)
        block = evaluate_(self._potential, cos, spare)
        if close is not None:
            block.take_out_(close.take_out_)
            self._add_close(close)
        if same is not None:
            block.take_out_(lambda tensor, nothing: tensor.masked_fill_(same, nothing))
        self.value += block.total()
        # The pair (i, j) and the pair (j, i) both pull at the own row i.
        return None if block.slope is None else (block.slope, 2 * block.slope_factor)

    def _add_close(self, close: ClosePairs) -> None:
        # Only the rows that these pairs are made of, for a gradient of the few in place of one of all n. A row that is
        # on both sides stands there twice: what it gets as a column, its own visit gives it.
        rows, first = torch.unique(close.first, return_inverse=True)
        columns, second = torch.unique(close.second, return_inverse=True)
        index = torch.cat((rows, columns))
        part = None if self._grad is None else self._unit.new_zeros(len(index), self._unit.shape[1])
        few = ClosePairs(close.where, first, second + len(rows))
        steps = close.second - close.first
        exact = sum_close_pairs(few, self._weight[index], self._potential, part, leave_out_below=None, steps=steps)
        self.value += 0.5 * exact.value  # it counts both orders
        if part is not None and self._grad is not None:
            self._grad.index_add_(0, rows - self._start, part[: len(rows)])

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

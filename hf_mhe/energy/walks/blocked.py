"""The exact walk: energy and gradient together, over panels of pairs, in O(n d) memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.rows import project_
from hf_mhe.energy.walks.close_pairs import ClosePairs, coincident_below, extremes, has_close_pairs, sum_close_pairs
from hf_mhe.energy.walks.closed_forms import Block, evaluate_, fill_diagonal_
from hf_mhe.energy.walks.panels import Panel, PanelBatch, Round, panel_batches, panel_rounds
from hf_mhe.energy.walks.small_cosines import power_sums_, series_that_pays
from hf_mhe.energy.workspace import scratch


class Observer(Protocol):
    """Statistics that want the same pairs: sees every block of cosines once, before it becomes a block of energies."""

    def observe(self, cos: Tensor, piece: PanelBatch) -> tuple[float, float]:
        """Look at `cos`, of the shape of `piece`, and return its smallest and largest cosine.

        A diagonal piece holds each pair twice, and c_ii = 0, which is no cosine of a pair.
        """


class PairSum(NamedTuple):
    """What a walk returns.

    Attributes:
        value: `sum_{i != j} F(c_ij)` over ordered pairs.
        gradient: its gradient with respect to the unit rows, `(n, d)`, not yet projected on the sphere; or None.
        coincident: unordered pairs at distance zero that were left out (only where the caller asked to leave them
            out).
    """

    value: float
    gradient: Tensor | None
    coincident: int


def walk(
    unit: Tensor,
    weight: Tensor,
    potential: Potential,
    *,
    gradient: bool,
    observer: Observer | None = None,
    leave_out_coincident: bool = False,
) -> PairSum:
    """Sum the pair function over all ordered pairs, exactly, with its gradient if wanted.

    Args:
        unit: `(n, d)`, float32 or float64, rows of length one: the precision that the products run in.
        weight: `(n, d)`, the rows as they came, any floating dtype: close pairs are recomputed from them in float64.
        potential: the pair function.
        gradient: whether to compute the gradient in the same pass.
        observer: sees every block of cosines.
        leave_out_coincident: count pairs at distance zero and leave them out of the sum, in place of an infinite sum.

    Costs `3 n^2 d` operations and `O(n d)` memory.
    """
    n, d = unit.shape
    rounds = panel_rounds(n, d, unit.device, gradient=gradient)
    sums = PanelSums(weight, unit, potential, gradient=gradient, leave_out_coincident=leave_out_coincident)
    size = max(each.elements for each in rounds)
    buffers = [scratch(f"panel {k}", size, unit.dtype, unit.device) for k in range(2 if gradient else 1)]
    for each in rounds:
        cos, *rest = (buffer[: each.elements] for buffer in buffers)
        for part, batch in each.parts:
            batch.products_(unit, cos[part].view(batch.shape))
        sums.visit_round(each, cos, rest[0] if rest else None, observer)
    return sums.result()


def cosines(unit: Tensor) -> Iterator[tuple[Tensor, PanelBatch]]:
    """The cosines of all pairs of unit rows, piece by piece, each valid until the next; 0 on the diagonal."""
    batches = panel_batches(len(unit), unit.device, gradient=False)
    buffer = scratch("panel 0", max(batch.elements for batch in batches), unit.dtype, unit.device)
    for batch in batches:
        cos = buffer[: batch.elements].view(batch.shape)
        batch.products_(unit, cos)
        if batch.first.diagonal:
            fill_diagonal_(cos)
        for part, piece in batch.pieces():
            yield cos[part].view(piece.shape), piece


def exact_unit_rows(weight: Tensor) -> Tensor:
    """Live rows in float64, of length one, for what float32 products are too coarse for."""
    return torch.nn.functional.normalize(weight.double(), dim=1, eps=0.0)


def cosines_of(piece: PanelBatch, unit: Tensor) -> Iterator[tuple[Tensor, PanelBatch]]:
    """The cosines of a piece's panels, one by one, in the precision of `unit`; 0 on the diagonal."""
    for panel in piece.items():
        cos = unit[panel.row : panel.row_end] @ unit[panel.column : panel.column_end].t()
        if panel.diagonal:
            fill_diagonal_(cos)
        yield cos, PanelBatch(panel)


class PanelSums:
    """What the panels add up to: value, gradient on the unit rows, and coincident pairs left out."""

    def __init__(
        self,
        weight: Tensor,
        unit: Tensor,
        potential: Potential,
        *,
        gradient: bool,
        leave_out_coincident: bool = False,
    ) -> None:
        self._weight, self._unit, self._potential = weight, unit, potential
        self._exact_unit = unit if unit.dtype == torch.float64 else None
        self._leave_out_below = coincident_below(weight.dtype) if leave_out_coincident else None
        self._value, self._coincident = 0.0, 0
        # Not zeros: each row's first product overwrites what is there, which saves a pass over the gradient.
        self._grad = torch.empty_like(unit) if gradient else None
        self._begun = False

    def result(self) -> PairSum:
        """What has been added so far."""
        if self._grad is not None and not self._begun:
            self._grad.zero_()
        return PairSum(self._value, self._grad, self._coincident)

    def visit_round(self, each: Round, cos: Tensor, spare: Tensor | None, observer: Observer | None) -> None:
        """Add a round of cosines in a flat block; overwrites `cos` and `spare` (None where no gradient is wanted)."""
        if observer is None and each.ordinary and self._visit_at_once(each, cos, spare):
            return
        for part, batch in each.parts:
            room = None if spare is None else spare[part].view(batch.shape)
            self.visit(batch, cos[part].view(batch.shape), room, observer)

    def _visit_at_once(self, each: Round, cos: Tensor, spare: Tensor | None) -> bool:
        # What `visit` does batch by batch, for a round without close pairs. False, and nothing done, where there are
        # some.
        each.fill_diagonals_(cos)
        known = None
        if spare is None and cos.dtype == torch.float32 and (series := series_that_pays(self._potential)) is not None:
            known = extremes(cos, two_sided=True)
            if series.holds(known):
                for part, batch in each.parts:
                    self._value += batch.orders * series.total(power_sums_(cos[part], batch.pairs, odd=series.odd))
                return True
        if has_close_pairs(cos, self._potential, known):
            return False
        block = evaluate_(self._potential, cos, spare)
        # What is left on the diagonals of the slopes is along each row, and goes where the rest of that goes.
        each.fill_diagonals_(block.value, block.nothing)
        # Squares have each pair twice. Their sum is taken from that of all, and not of two halves, because a pass that
        # is shared out to the threads as the passes before finds each core's part in its own cache.
        squares = block.total_of(block.value[each.rectangles :])
        self._value += 2 * block.total() - squares
        if self._grad is not None and block.slope is not None:
            self._add_slopes(each, block.slope, 2 * block.slope_factor)
            self._begun = True
        return True

    def _add_slopes(self, each: Round, slope: Tensor, factor: float) -> None:
        assert self._grad is not None
        n, d = self._unit.shape
        if each.is_mirrored(d):
            square = scratch("mirrored slopes", n * n, slope.dtype, slope.device).view(n, n)
            each.mirror_(slope, square)
            self._grad.addmm_(square, self._unit, beta=0, alpha=factor)
            return
        for part, batch in each.parts:
            _add_products_(self._grad, slope[part].view(batch.shape), self._unit, batch, factor)

    def visit(self, batch: PanelBatch, cos: Tensor, spare: Tensor | None, observer: Observer | None) -> None:
        """Add one batch of panels of cosines; overwrites `cos` and `spare` (None where no gradient is wanted)."""
        if batch.first.diagonal:
            fill_diagonal_(cos)
        slope, slope_factor = spare, 0.0
        exceptions: list[ClosePairs | PanelBatch] = []
        for part, piece in batch.pieces():
            known = None if observer is None else observer.observe(cos[part].view(piece.shape), piece)
            block, exception = self._evaluate(piece, cos[part], None if spare is None else spare[part], known)
            if exception is not None:
                exceptions.append(exception)
            if block is not None and block.slope is not None:
                slope, slope_factor = (cos if block.slope_in_cos else spare), block.slope_factor
        if self._grad is not None and slope is not None:
            _add_products_(self._grad, slope, self._unit, batch, 2 * slope_factor)
            self._begun = True
        for exception in exceptions:  # only now, when the gradient of all rows of the batch has begun
            if isinstance(exception, ClosePairs):
                self._add_close_pairs(exception)
            else:
                self._add_in_float64(exception, gradient=spare is not None)

    def _evaluate(
        self,
        piece: PanelBatch,
        cos: Tensor,
        spare: Tensor | None,
        known: tuple[float, float] | None = None,
    ) -> tuple[Block | None, ClosePairs | PanelBatch | None]:
        """Add a piece's value and turn it into slopes; and what is left of it to be added otherwise.

        That is its close pairs, or the whole piece, which is then all zeros.
        """
        if spare is None and cos.dtype == torch.float32 and (series := series_that_pays(self._potential)) is not None:
            known = extremes(cos, two_sided=True) if known is None else known
            if series.holds(known):
                self._value += piece.orders * series.total(power_sums_(cos, piece.pairs, odd=series.odd))
                return None, None
        close = ClosePairs.find(cos, piece, self._potential, known)
        if close is not None and close.too_many(cos.numel()) and cos.dtype != torch.float64:
            cos.zero_()
            if spare is not None:
                spare.zero_()
            return None, piece
        if close is not None:
            close.take_out_(cos)
        block = evaluate_(self._potential, cos, spare)
        if close is not None:
            block.take_out_(close.take_out_)
        if piece.first.diagonal:
            block.take_out_(fill_diagonal_)
        self._value += piece.orders * block.total()
        return block, close

    def _add_close_pairs(self, close: ClosePairs) -> None:
        rows = self._weight if self._exact_unit is None else self._exact_unit
        exact = sum_close_pairs(close, rows, self._potential, self._grad, leave_out_below=self._leave_out_below)
        self._value += exact.value
        self._coincident += exact.coincident

    def _add_in_float64(self, piece: PanelBatch, *, gradient: bool) -> None:
        # Float64 products reach pairs a thousand times closer than float32 ones, at a sixtieth of the price of
        # recomputing the pairs one by one; a layer that has collapsed to one direction is such a case.
        if self._exact_unit is None:
            self._exact_unit = exact_unit_rows(self._weight)
        unit = self._exact_unit
        for cos, panel in cosines_of(piece, unit):
            block, close = self._evaluate(panel, cos, torch.empty_like(cos) if gradient else None)
            if self._grad is not None and block is not None and block.slope is not None:
                _add_tangent_products_(self._grad, block.slope, unit, panel.first, 2 * block.slope_factor)
            if isinstance(close, ClosePairs):
                self._add_close_pairs(close)


def _add_products_(grad: Tensor, slope: Tensor, unit: Tensor, batch: PanelBatch, factor: float) -> None:
    _add_(batch.left(grad), slope, batch.right(unit), factor, beta=0 if batch.opens_rows else 1)
    if not batch.first.diagonal:
        _add_(batch.right(grad), slope.mT, batch.left(unit), factor, beta=0 if batch.opens_columns else 1)


def _add_(target: Tensor, slope: Tensor, rows: Tensor, factor: float, *, beta: int) -> None:
    if target.dim() == 2:
        target.addmm_(slope, rows, alpha=factor, beta=beta)
    else:
        target.baddbmm_(slope, rows, alpha=factor, beta=beta)


def _add_tangent_products_(grad: Tensor, slope: Tensor, unit: Tensor, panel: Panel, factor: float) -> None:
    # The same in float64, for a panel of close pairs. There the product is nearly parallel to the neuron, and what
    # counts is the small rest: it has to be projected on the sphere before it is rounded to float32, not after.
    first, last = min(panel.row, panel.column), max(panel.row_end, panel.column_end)
    part = torch.zeros_like(unit[first:last])
    local = PanelBatch(Panel(panel.row - first, panel.row_end - first, panel.column - first, panel.column_end - first))
    _add_products_(part, slope, unit[first:last], local, factor)
    grad[first:last] += project_(part, unit[first:last]).to(grad.dtype)

"""Some rows against all of them, exactly: the share of an energy, and the gradient, that one of several owners needs.

Where the rows of a weight are divided between processes, each walks its own rows against all. The shares of the value
add up to the energy, and the gradient of the own rows is complete: nothing has to be sent back to their owners.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype, product_dtype, without_autocast
from hf_mhe.energy.rows import TooFewLiveRowsError, check_weight, unit_rows
from hf_mhe.energy.walks.blocked import PairSum, walk
from hf_mhe.energy.walks.close_pairs import ClosePairs, sum_close_pairs
from hf_mhe.energy.walks.closed_forms import evaluate_
from hf_mhe.energy.walks.panels import Panel, Stack, block_shape, cuts
from hf_mhe.errors import MHEError


@without_autocast
def energy_share(own: Tensor, everyone: Tensor, start: int, potential: Potential) -> Tensor:
    """The share of the mean energy of `everyone`'s rows that the rows `own` account for: `i` own, `j` any other row.

    The shares of disjoint own rows that cover `everyone` sum to the energy. The gradient is not that of the share but
    of the whole energy, with respect to the own rows: a sum of shares whose gradient is handed on unchanged has the
    gradient of the energy. Rows of zeros, or of a negligible length, are left out of both.

    Args:
        own: `(m, d)`, m >= 0, the rows `[start, start + m)` of `everyone`; the gradient goes here.
        everyone: `(n, d)`, same dtype and device; no gradient goes here.
        start: the place of the first own row.
        potential: the pair function.

    Returns:
        0-dim tensor; float64 for a float64 weight, float32 otherwise. Zero where fewer than two rows are live.

    Raises:
        MHEError: a value is not finite, the own rows do not lie in `everyone`, or as `hyperspherical_energy`.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, eq. (1), its sum over i split.
    """
    check_weight(everyone)
    if own.dim() != 2 or own.shape[1] != everyone.shape[1] or not 0 <= start <= len(everyone) - len(own):
        raise MHEError(
            f"own rows of shape {tuple(own.shape)} from row {start} on must lie within all rows, of shape "
            f"{tuple(everyone.shape)}"
        )
    share: Tensor = _Share.apply(own, everyone.detach(), start, potential)
    return share


class _Share(torch.autograd.Function):
    """The forward pass leaves the gradient ready; the backward pass is one scaling."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, everyone: Tensor, start: int, potential: Potential) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        dtype = energy_dtype(own)
        gradient = torch.zeros_like(own) if wanted else own.new_empty(0)
        ctx.save_for_backward(gradient)
        try:
            rows = unit_rows(everyone, product_dtype(everyone), dead="skip_negligible")
        except TooFewLiveRowsError:  # a layer that starts at zero (LoRA's B) has no pair of directions yet
            return torch.zeros((), dtype=dtype, device=own.device)
        source, first, last = everyone, start, start + len(own)
        if rows.live is not None:
            source = everyone[rows.live]
            first, last = int((rows.live < first).sum()), int((rows.live < last).sum())
        pairs = rows_against_all(rows.unit, source, first, last, potential, gradient=wanted)
        n, own_share = len(rows.unit), (last - first) / len(rows.unit)
        # A constant term of the energy, that of the mirror images, belongs to all rows alike.
        constant = float(potential.mean_of(0.0, n))
        share = potential.mean_of(pairs.value, n) - constant + own_share * constant
        if pairs.gradient is not None:
            unit = rows.unit[first:last]
            grad = pairs.gradient.mul_(potential.scale_of(n, "mean"))
            grad.addcmul_(unit, (grad * unit).sum(1, keepdim=True), value=-1).div_(rows.norm[first:last])
            if rows.live is None:
                gradient.copy_(grad)
            else:
                gradient[rows.live[first:last] - start] = grad.to(gradient.dtype)
        return torch.tensor(share, dtype=dtype, device=own.device)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None


def rows_against_all(
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
        for row, row_end in cuts(start, stop, height)
        for begin, end in ((0, start), (stop, n))
        for column, column_end in cuts(begin, end, width)
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
        close = ClosePairs.find(cos, Stack(panel), self._potential)
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
        close = ClosePairs.find(cos, Stack(panel), self._potential)
        product = self._add(panel, cos, None if self._grad is None else torch.empty_like(cos), close)
        if product is not None and self._grad is not None:
            slope, factor = product
            part = (slope @ right).mul_(factor)
            part.addcmul_(left, (part * left).sum(1, keepdim=True), value=-1)
            self._own(panel).add_(part.to(self._grad.dtype))

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

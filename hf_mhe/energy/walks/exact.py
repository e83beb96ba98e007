"""The exact energy of a weight: which walk takes it, small matrices many at once, and what its gradient becomes."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype, product_dtype, under_autocast, without_autocast
from hf_mhe.energy.rows import DeadRows, are_ordinary, pull_back_, row_norms, unit_rows
from hf_mhe.energy.walks import blocked, triton_walk
from hf_mhe.energy.walks.panels import one_square
from hf_mhe.energy.walks.squares import batch_size, walk_squares
from hf_mhe.energy.workspace import scratch, scratch_in_turn

_KEEP_ABOVE = 1 << 17  # elements of unit rows from which on the memory is kept between calls


def _one(
    weight: Tensor,
    potential: Potential,
    *,
    reduction: str,
    dead: DeadRows,
    gradient: bool,
    out: Tensor | None = None,
) -> tuple[float, Tensor | None]:
    """The energy of `(n, d)`, and its gradient if wanted, in `out` (contiguous, the weight's dtype) if given."""
    dtype = product_dtype(weight)
    room = None if weight.numel() < _KEEP_ABOVE else scratch_in_turn("unit rows", weight.numel(), dtype, weight.device)
    rows = unit_rows(weight, dtype, dead=dead, out=None if room is None else room.view(weight.shape))
    source = weight if rows.live is None else weight[rows.live]
    on_gpu = rows.unit.dtype == torch.float32 and triton_walk.available(rows.unit.device)
    pairs = (triton_walk if on_gpu else blocked).walk(rows.unit, source, potential, gradient=gradient)
    n = len(rows.unit)
    energy = potential.mean_of(pairs.value, n, reduction)
    if pairs.gradient is None:
        return energy, None
    grad = pull_back_(pairs.gradient, rows, potential.scale_of(n, reduction), out=out if rows.live is None else None)
    grad = grad.to(weight.dtype)
    if rows.live is None:
        return energy, grad
    whole = weight.new_zeros(weight.shape) if out is None else out.zero_()
    return energy, whole.index_copy_(0, rows.live, grad)


def _some(
    weights: Tensor, potential: Potential, *, reduction: str, dead: DeadRows, out: Tensor | None
) -> list[float] | None:
    """The energies of `(B, n, d)` small matrices, and in `out` (same dtype), if given, their gradient.

    None where a row or a pair needs more care than all of them can be given at once.
    """
    n = weights.shape[1]
    rows = weights.to(product_dtype(weights)).contiguous()
    norm = row_norms(rows, scratch("unit rows", rows.numel(), rows.dtype, rows.device).view(rows.shape))
    if not are_ordinary(norm, dead):
        return None
    into = out if out is None or out.dtype == rows.dtype else torch.empty_like(rows)
    sums = walk_squares(rows, norm, potential, scale=potential.scale_of(n, reduction), out=into)
    if sums is None:
        return None
    if out is not None and into is not None and into is not out:
        out.copy_(into)
    return [potential.mean_of(value, n, reduction) for value in sums]


def matrices_at_a_time(weight: Tensor) -> int:
    """How many matrices of a weight's `(..., n, d)`, dtype and device are walked together; 1 where n is large."""
    if _by_triton(weight):
        return 1
    n, d = weight.shape[-2:]
    return max(1, batch_size(n, d, weight.device))


def _is_one_wide_square(weight: Tensor) -> bool:
    """Whether the walk of squares, whose passes are over pairs in place of coordinates, saves more than its calls."""
    n, d = weight.shape
    return weight.numel() >= _KEEP_ABOVE and 2 * d >= n and one_square(n, weight.device) and not _by_triton(weight)


def _by_triton(weight: Tensor) -> bool:
    return product_dtype(weight) == torch.float32 and triton_walk.available(weight.device)


def compute(
    weight: Tensor, potential: Potential, *, reduction: str, dead: DeadRows, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Energy of `(n, d)` or `(B, n, d)` rows, and its gradient in the weight's dtype (empty unless `gradient`)."""
    if under_autocast(weight):
        return without_autocast(compute)(weight, potential, reduction=reduction, dead=dead, gradient=gradient)
    if weight.dim() == 2:
        if _is_one_wide_square(weight):
            out = weight.new_empty(weight.shape) if gradient else weight.new_empty(0)
            into = out[None] if gradient else None
            some = _some(weight[None], potential, reduction=reduction, dead=dead, out=into)
            if some is not None:
                return _energy(some[0], weight), out
        energy, grad = _one(weight, potential, reduction=reduction, dead=dead, gradient=gradient)
        return _energy(energy, weight), weight.new_empty(0) if grad is None else grad
    step = matrices_at_a_time(weight)
    energies: list[float] = []
    grads = weight.new_empty(weight.shape if gradient else (len(weight), 0))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        found = None
        if step > 1:
            into = grads[part] if gradient else None
            found = _some(weight[part], potential, reduction=reduction, dead=dead, out=into)
        if found is None:
            alone = zip(weight[part], grads[part], strict=True)
            found = [
                _one(each, potential, reduction=reduction, dead=dead, gradient=gradient, out=out)[0]
                for each, out in alone
            ]
        energies += found
    return _energy(energies, weight), grads


def _energy(value: float | list[float], weight: Tensor) -> Tensor:
    if isinstance(value, float):  # in a third of the time
        return torch.scalar_tensor(value, dtype=energy_dtype(weight), device=weight.device)
    return torch.tensor(value, dtype=energy_dtype(weight), device=weight.device)

"""The exact walk as a `torch.library` operator, so that autograd, `torch.compile` and `torch.export` know it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.rows import are_ordinary, pull_back_, row_norms, unit_rows
from hf_mhe.energy.walks import blocked, triton_walk
from hf_mhe.energy.walks.panels import one_square
from hf_mhe.energy.walks.squares import together, walk_squares
from hf_mhe.energy.walks.workspace import scratch
from hf_mhe.errors import MHEError

# Note [Small problems in float64]
# A handful of neurons is call overhead, and float64 costs nothing there; from 64 neurons on the errors of float32
# average out over two thousand pairs and more. So two neurons get float64's digits and three thousand get float32's
# speed.
_FLOAT64_BELOW_NEURONS = 64
_FLOAT64_BELOW = 1 << 16  # multiplications

_KEEP_ABOVE = 1 << 17  # elements of unit rows from which on the memory is kept between calls


def product_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which the products of this weight run."""
    n, d = weight.shape[-2:]
    small = (n < _FLOAT64_BELOW_NEURONS or n * n * d <= _FLOAT64_BELOW) and weight.device.type != "mps"
    return torch.float64 if weight.dtype == torch.float64 or small else torch.float32


def _energy_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _one(
    weight: Tensor, potential: Potential, reduction: str, skip_dead: bool, gradient: bool, out: Tensor | None = None
) -> tuple[float, Tensor | None]:
    """The energy of `(n, d)`, and its gradient if wanted, in `out` (contiguous, the weight's dtype) if given."""
    dtype = product_dtype(weight)
    room = None if weight.numel() < _KEEP_ABOVE else scratch("unit rows", weight.numel(), dtype, weight.device)
    rows = unit_rows(
        weight, dtype, dead="skip" if skip_dead else "error", out=None if room is None else room.view(weight.shape)
    )
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


def _some(weights: Tensor, potential: Potential, reduction: str, out: Tensor | None) -> list[float] | None:
    """The energies of `(B, n, d)` small matrices, and in `out` (same dtype), if given, their gradient.

    None where a row or a pair needs more care than all of them can be given at once.
    """
    n = weights.shape[1]
    rows = weights.to(product_dtype(weights)).contiguous()
    norm = row_norms(rows, scratch("unit rows", rows.numel(), rows.dtype, rows.device).view(rows.shape))
    if not are_ordinary(norm):
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
    return max(1, together(n, d, weight.device))


def _is_one_wide_square(weight: Tensor) -> bool:
    """Whether the walk of squares, whose passes are over pairs in place of coordinates, saves more than its calls."""
    n, d = weight.shape
    return weight.numel() >= _KEEP_ABOVE and 2 * d >= n and one_square(n, weight.device) and not _by_triton(weight)


def _by_triton(weight: Tensor) -> bool:
    return product_dtype(weight) == torch.float32 and triton_walk.available(weight.device)


def _compute(
    weight: Tensor, potential: Potential, reduction: str, skip_dead: bool, gradient: bool
) -> tuple[Tensor, Tensor]:
    if weight.dim() == 2:
        if _is_one_wide_square(weight):
            out = weight.new_empty(weight.shape) if gradient else weight.new_empty(0)
            some = _some(weight[None], potential, reduction, out[None] if gradient else None)
            if some is not None:
                return _energy(some[0], weight), out
        energy, grad = _one(weight, potential, reduction, skip_dead, gradient)
        return _energy(energy, weight), weight.new_empty(0) if grad is None else grad
    step = matrices_at_a_time(weight)
    energies: list[float] = []
    grads = weight.new_empty(weight.shape if gradient else (len(weight), 0))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        found = _some(weight[part], potential, reduction, grads[part] if gradient else None) if step > 1 else None
        if found is None:
            alone = zip(weight[part], grads[part], strict=True)
            found = [_one(each, potential, reduction, skip_dead, gradient, out)[0] for each, out in alone]
        energies += found
    return _energy(energies, weight), grads


def _energy(value: float | list[float], weight: Tensor) -> Tensor:
    if isinstance(value, float):  # in a third of the time
        return torch.scalar_tensor(value, dtype=_energy_dtype(weight), device=weight.device)
    return torch.tensor(value, dtype=_energy_dtype(weight), device=weight.device)


@torch.library.custom_op("hf_mhe::exact_energy", mutates_args=())
def operator(
    weight: Tensor,
    s: float,
    distance: str,
    space: str,
    softening: float,
    reduction: str,
    skip_dead: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Energy of `(n, d)` or `(B, n, d)` rows, and its gradient in the weight's dtype (empty unless `gradient`)."""
    potential = Potential(s, distance, space, softening)  # type: ignore[arg-type]
    energy, found = _compute(weight, potential, reduction, skip_dead, gradient)
    return energy, found.contiguous()  # however the weight lies and whichever walk it was: the fake kernel has to know


@operator.register_fake
def _(
    weight: Tensor,
    s: float,
    distance: str,
    space: str,
    softening: float,
    reduction: str,
    skip_dead: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    energy = weight.new_empty(weight.shape[:-2], dtype=_energy_dtype(weight))
    empty = (0,) if weight.dim() == 2 else (weight.shape[0], 0)
    return energy, weight.new_empty(weight.shape if gradient else empty)


def _over_rows(upstream: Tensor, gradient: Tensor) -> Tensor:
    return upstream if upstream.dim() == 0 else upstream.to(gradient.dtype)[:, None, None]


# The weight is an argument so that a second derivative meets it, and is refused, in place of coming out as zero.
@torch.library.custom_op("hf_mhe::scale_gradient", mutates_args=())
def _scale_gradient(upstream: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient * _over_rows(upstream, gradient)


@_scale_gradient.register_fake
def _(upstream: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _refuse_second_derivative(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    raise MHEError(
        "the exact walk has no second derivative (its gradient is computed in the forward pass): "
        "use hyperspherical_energy(..., walk='dense') where one is needed"
    )


_scale_gradient.register_autograd(_refuse_second_derivative)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[0])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, _upstream_of_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient, weight = ctx.saved_tensors
    return None if upstream is None else _scale_gradient(upstream, gradient, weight), *((None,) * 7)


operator.register_autograd(_backward, setup_context=_setup_context)


class _Eager(torch.autograd.Function):
    """The operator without the dispatcher: the call overhead of a custom operator outweighs a small layer's work."""

    # Not the newer split into forward and setup_context: binding its arguments costs as much as a small layer too.
    @staticmethod
    def forward(ctx: Any, weight: Tensor, potential: Potential, reduction: str, skip_dead: bool) -> Tensor:
        energy, ctx.gradient = _compute(weight, potential, reduction, skip_dead, gradient=True)
        ctx.again = functools.partial(_compute, potential=potential, reduction=reduction, skip_dead=skip_dead)
        ctx.save_for_backward(weight)
        return energy

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        # The gradient is scaled in place and handed over: a copy would cost a pass over the layer, in every step. A
        # second backward pass through a retained graph, which is rare, walks again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            gradient = ctx.again(weight, gradient=True)[1]
        if torch.is_grad_enabled():
            return _scale_gradient(upstream, gradient, weight), None, None, None
        return gradient.mul_(_over_rows(upstream, gradient)), None, None, None


def exact_energy(weight: Tensor, potential: Potential, *, reduction: str, skip_dead: bool, gradient: bool) -> Tensor:
    """The energy of the rows of `weight`, `(n, d)` or `(B, n, d)`, with autograd's leave if `gradient`."""
    if torch.compiler.is_compiling():
        s, softening = float(potential.s), float(potential.softening)
        return operator(weight, s, potential.distance, potential.space, softening, reduction, skip_dead, gradient)[0]
    if gradient:
        return _Eager.apply(weight, potential, reduction, skip_dead)
    return _compute(weight, potential, reduction, skip_dead, gradient=False)[0]

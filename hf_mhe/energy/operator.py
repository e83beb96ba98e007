"""The exact walk as a `torch.library` operator, so that autograd, `torch.compile` and `torch.export` know it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype, product_dtype, under_autocast, without_autocast
from hf_mhe.energy.rows import DeadRows, are_ordinary, pull_back_, row_norms, unit_rows
from hf_mhe.energy.walks import blocked, triton_walk
from hf_mhe.energy.walks.panels import one_square
from hf_mhe.energy.walks.squares import together, walk_squares
from hf_mhe.energy.walks.workspace import scratch
from hf_mhe.errors import MHEError

_KEEP_ABOVE = 1 << 17  # elements of unit rows from which on the memory is kept between calls


def _one(
    weight: Tensor, potential: Potential, reduction: str, dead: DeadRows, gradient: bool, out: Tensor | None = None
) -> tuple[float, Tensor | None]:
    """The energy of `(n, d)`, and its gradient if wanted, in `out` (contiguous, the weight's dtype) if given."""
    dtype = product_dtype(weight)
    room = None if weight.numel() < _KEEP_ABOVE else scratch("unit rows", weight.numel(), dtype, weight.device)
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
    weights: Tensor, potential: Potential, reduction: str, dead: DeadRows, out: Tensor | None
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
    return max(1, together(n, d, weight.device))


def _is_one_wide_square(weight: Tensor) -> bool:
    """Whether the walk of squares, whose passes are over pairs in place of coordinates, saves more than its calls."""
    n, d = weight.shape
    return weight.numel() >= _KEEP_ABOVE and 2 * d >= n and one_square(n, weight.device) and not _by_triton(weight)


def _by_triton(weight: Tensor) -> bool:
    return product_dtype(weight) == torch.float32 and triton_walk.available(weight.device)


def compute(
    weight: Tensor, potential: Potential, reduction: str, dead: DeadRows, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Energy of `(n, d)` or `(B, n, d)` rows, and its gradient in the weight's dtype (empty unless `gradient`)."""
    if under_autocast(weight):
        return without_autocast(compute)(weight, potential, reduction, dead, gradient)
    if weight.dim() == 2:
        if _is_one_wide_square(weight):
            out = weight.new_empty(weight.shape) if gradient else weight.new_empty(0)
            some = _some(weight[None], potential, reduction, dead, out[None] if gradient else None)
            if some is not None:
                return _energy(some[0], weight), out
        energy, grad = _one(weight, potential, reduction, dead, gradient)
        return _energy(energy, weight), weight.new_empty(0) if grad is None else grad
    step = matrices_at_a_time(weight)
    energies: list[float] = []
    grads = weight.new_empty(weight.shape if gradient else (len(weight), 0))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        found = (
            _some(weight[part], potential, reduction, dead, grads[part] if gradient else None) if step > 1 else None
        )
        if found is None:
            alone = zip(weight[part], grads[part], strict=True)
            found = [_one(each, potential, reduction, dead, gradient, out)[0] for each, out in alone]
        energies += found
    return _energy(energies, weight), grads


def _energy(value: float | list[float], weight: Tensor) -> Tensor:
    if isinstance(value, float):  # in a third of the time
        return torch.scalar_tensor(value, dtype=energy_dtype(weight), device=weight.device)
    return torch.tensor(value, dtype=energy_dtype(weight), device=weight.device)


@torch.library.custom_op("hf_mhe::exact_energy", mutates_args=())
def operator(
    weight: Tensor,
    s: float,
    distance: str,
    space: str,
    softening: float,
    closest: float,
    parts: bool,
    reduction: str,
    dead: str,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Energy of `(n, d)` or `(B, n, d)` rows, and its gradient in the weight's dtype (empty unless `gradient`)."""
    potential = Potential(s, distance, space, softening, closest, parts)  # type: ignore[arg-type]
    energy, found = compute(weight, potential, reduction, dead, gradient)  # type: ignore[arg-type]
    return energy, found.contiguous()  # however the weight lies and whichever walk it was: the fake kernel has to know


@operator.register_fake
def _(
    weight: Tensor,
    s: float,
    distance: str,
    space: str,
    softening: float,
    closest: float,
    parts: bool,
    reduction: str,
    dead: str,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    energy = weight.new_empty(weight.shape[:-2], dtype=energy_dtype(weight))
    empty = (0,) if weight.dim() == 2 else (weight.shape[0], 0)
    return energy, weight.new_empty(weight.shape if gradient else empty)


def over_rows(upstream: Tensor, gradient: Tensor) -> Tensor:
    """What came for each energy, `(...)`, in a shape that multiplies gradients `(..., n, d)`."""
    return upstream if upstream.dim() == 0 else upstream.to(gradient.dtype)[..., None, None]


def _refuse_second_derivative() -> None:
    raise MHEError(
        "the exact walk has no second derivative (its gradient is computed in the forward pass): "
        "use hyperspherical_energy(..., walk='dense') where one is needed"
    )


class OnceDifferentiable(torch.autograd.Function):
    """The weight is an argument so that a second derivative meets it, and is refused, in place of being zero."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return _refuse_second_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _refuse_second_derivative()

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        batched = (
            tensor.expand(info.batch_size, *tensor.shape) if at is None else tensor.movedim(at, 0)
            for tensor, at in zip(tensors, in_dims, strict=True)
        )
        return cls.apply(*batched), 0


class Scale(OnceDifferentiable):
    """The gradient times what came for the energy: how a backward pass ends."""

    @staticmethod
    def forward(upstream: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
        return gradient * over_rows(upstream, gradient)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[0])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, _upstream_of_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient, weight = ctx.saved_tensors
    return None if upstream is None else Scale.apply(upstream, gradient, weight), *((None,) * 9)


operator.register_autograd(_backward, setup_context=_setup_context)

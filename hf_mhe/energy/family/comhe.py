"""Projections of directions to fewer dimensions, shared by the three CoMHE objectives."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_mhe.energy.family.inputs import check_count, normal
from hf_mhe.errors import MHEError

# Note [Scale of a projection]
# The energy of projected rows does not change when P is multiplied by a number, so the gradient with respect to P
# shrinks as P grows, and what a step size does depends on the scale of the matrix that it is applied to. The
# published code draws P with entries N(0, 1), whose Frobenius norm is about sqrt(k d); a step of 0.1 then turns P by a
# ten-thousandth. Here entries are N(0, 1 / (k d)), of norm one for every shape, so that a step size means the same for
# every layer. The directions of the projected rows are distributed as in the paper.


def draw_projections(
    count: int, dim: int, unit: Tensor, generator: torch.Generator | None, seed: int | None
) -> Tensor:
    """`(count, dim, d)` independent Gaussian projections for unit rows `(n, d)`, of Frobenius norm about one each.

    Raises:
        MHEError: `dim` is not from 2 to d (in one dimension all directions are +1 or -1), or the source of random
            numbers is not clear.
    """
    d = unit.shape[1]
    if d < 2:
        raise MHEError("a projection needs neurons of at least two dimensions; got d = 1")
    check_count("dim", dim, at_least=2, at_most=d)
    return normal((count, dim, d), unit, generator, seed) / math.sqrt(dim * d)


def given_or_drawn(
    projection: Tensor | None, dim: int, unit: Tensor, generator: torch.Generator | None, seed: int | None
) -> Tensor:
    """The caller's `(k, d)` projection, checked and detached, or a fresh one of `dim` rows."""
    if projection is None:
        return draw_projections(1, dim, unit, generator, seed)[0]
    d = unit.shape[1]
    if not isinstance(projection, Tensor) or projection.dim() != 2 or projection.shape[1] != d or len(projection) < 2:
        came = tuple(projection.shape) if isinstance(projection, Tensor) else type(projection).__name__
        raise MHEError(f"projection must be a tensor of shape (k, {d}) with k >= 2; got {came}")
    if not projection.is_floating_point():
        raise MHEError(f"projection must be of a floating dtype; got {projection.dtype}")
    return projection.detach().to(unit)


def ascend(
    projection: Tensor, objective: Callable[[Tensor], Tensor], *, steps: int, step_size: float, keep_graph: bool
) -> Tensor:
    """`steps` of gradient ascent of `objective` from `projection`: `P <- P + step_size * grad`.

    With `keep_graph` the result is a differentiable function of whatever the objective depends on; else it is a
    constant.

    Raises:
        MHEError: the gradient is not finite.
    """
    if steps == 0:
        return projection
    point = projection.detach().requires_grad_()
    for _ in range(steps):
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(point), point, create_graph=keep_graph)
            if not bool(torch.isfinite(gradient).all()):
                raise MHEError(
                    "the gradient with respect to the projection is not finite: projected neurons are too close for "
                    "this potential; pass softening > 0, or a smaller s"
                )
            moved = point + step_size * gradient
        point = moved if keep_graph else moved.detach().requires_grad_()
    return point if keep_graph else point.detach()

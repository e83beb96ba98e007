"""How the exact walk is differentiated: by autograd, by a compiler, by the transforms of `torch.func`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hf_mhe.energy.operator import OnceDifferentiable, Scale, compute, operator, over_rows
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.rows import DeadRows


def exact_energy(weight: Tensor, potential: Potential, *, reduction: str, dead: DeadRows, gradient: bool) -> Tensor:
    """The energy of the rows of `weight`, `(n, d)` or `(B, n, d)`, with autograd's leave if `gradient`."""
    if torch.compiler.is_compiling():
        return operator(weight, *_options(potential), reduction, dead, gradient)[0]
    if torch._C._are_functorch_transforms_active() or forward_ad.unpack_dual(weight).tangent is not None:
        return _Transformed.apply(weight, *_options(potential), reduction, dead)[0]
    if gradient:
        return _Eager.apply(weight, potential, reduction, dead)
    return compute(weight, potential, reduction, dead, gradient=False)[0]


def _options(potential: Potential) -> tuple[float, str, str, float, float, bool]:
    bounds = float(potential.softening), float(potential.closest), potential.parts
    return float(potential.s), potential.distance, potential.space, *bounds


class _Eager(torch.autograd.Function):
    """The operator without the dispatcher: the call overhead of a custom operator outweighs a small layer's work."""

    # Not the newer split into forward and setup_context: binding its arguments costs as much as a small layer too.
    @staticmethod
    def forward(ctx: Any, weight: Tensor, potential: Potential, reduction: str, dead: DeadRows) -> Tensor:
        energy, ctx.gradient = compute(weight, potential, reduction, dead, gradient=True)
        ctx.again = functools.partial(compute, potential=potential, reduction=reduction, dead=dead)
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
        if torch.is_grad_enabled() or _is_batched(upstream):
            return Scale.apply(upstream, gradient, weight), None, None, None
        return gradient.mul_(over_rows(upstream, gradient)), None, None, None


def _is_batched(tensor: Tensor) -> bool:
    """Whether it stands for a batch: under `torch.func.vmap`, or the older one of `grad(is_grads_batched=True)`."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


class _Transformed(torch.autograd.Function):
    """The operator for `torch.func`, whose transforms a custom operator does not take part in, and for forward mode.

    Always with the gradient: what is outside of the innermost transform is not known here.
    """

    @staticmethod
    def forward(
        weight: Tensor,
        s: float,
        distance: str,
        space: str,
        softening: float,
        closest: float,
        parts: bool,
        reduction: str,
        dead: DeadRows,
    ) -> tuple[Tensor, Tensor]:
        energy, gradient = operator(weight, s, distance, space, softening, closest, parts, reduction, dead, True)
        return energy, gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], inputs[0])
        ctx.save_for_forward(output[1], inputs[0])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _upstream_of_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        return None if upstream is None else Scale.apply(upstream, gradient, weight), *((None,) * 8)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None]:
        gradient, weight = ctx.saved_tensors
        return _Along.apply(tangent, gradient, weight), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], weight: Tensor, *options: Any) -> tuple[Any, tuple[int, int]]:
        weights = weight.movedim(in_dims[0] or 0, 0)
        if weights.dim() == 3:
            return _Transformed.apply(weights, *options), (0, 0)
        energies, gradients = _Transformed.apply(weights.flatten(0, 1), *options)
        shape = weights.shape[:2]
        return (energies.unflatten(0, shape), gradients.unflatten(0, shape)), (0, 0)


class _Along(OnceDifferentiable):
    """The gradient along a direction: how a forward-mode pass ends."""

    @staticmethod
    def forward(tangent: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
        return (gradient * tangent).sum(dim=(-2, -1)).to(torch.promote_types(weight.dtype, torch.float32))

"""Gradients that the forward pass has computed: how they are scaled, and that they have no derivative themselves."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from hf_mhe.errors import MHEError


def over_rows(upstream: Tensor, gradient: Tensor) -> Tensor:
    """The upstream gradient of each energy, `(...)`, in a shape that multiplies gradients `(..., n, d)`."""
    return upstream if upstream.dim() == 0 else upstream.to(gradient.dtype)[..., None, None]


class OnceDifferentiable(torch.autograd.Function):
    """The weight is an argument so that a second derivative meets it, and is refused, in place of being zero.

    Attributes:
        of: what was differentiated, for the error.
    """

    of: ClassVar[str] = "the exact walk"

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        return None

    @classmethod
    def backward(cls, ctx: Any, *upstream: Any) -> Any:
        cls._refuse()

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        cls._refuse()

    @classmethod
    def _refuse(cls) -> NoReturn:
        raise MHEError(
            f"{cls.of} has no second derivative (its gradient is computed in the forward pass): "
            "use hyperspherical_energy(..., walk='dense') where one is needed"
        )

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        batched = (
            tensor.expand(info.batch_size, *tensor.shape) if at is None else tensor.movedim(at, 0)
            for tensor, at in zip(tensors, in_dims, strict=True)
        )
        return cls.apply(*batched), 0


class Scale(OnceDifferentiable):
    """The gradient times the upstream gradient of the energy: how a backward pass ends."""

    @staticmethod
    def forward(upstream: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
        return gradient * over_rows(upstream, gradient)


def gradient_is_second_output(operator: torch.library.CustomOpDef) -> None:
    """Tell autograd that an operator returns an energy and, ready made, its gradient on the first input."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1], inputs[0])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.other_inputs = len(inputs) - 1

    def backward(ctx: Any, upstream: Tensor | None, _upstream_of_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        on_weight = None if upstream is None else Scale.apply(upstream, gradient, weight)
        return on_weight, *((None,) * ctx.other_inputs)

    operator.register_autograd(backward, setup_context=setup_context)

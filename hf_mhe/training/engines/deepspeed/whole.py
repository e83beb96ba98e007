"""An objective that needs the whole matrix under DeepSpeed: one rank computes it, and all of them have its graph.

Note [One rank for a whole matrix]
ZeRO reduces gradients in the order in which they are ready, which has to be the same on every rank (see `zero.py`). So
every rank has the same node for a term. In the backward pass it gives the gradient times the number of ranks on the
one that computed the term, and zeros on the others: the reduction completes it. That rank has the gradients after the
forward pass, in full size: all ranks together have a model of them.

Under ZeRO 3 a parameter is whole for a moment only, and gathering the next one needs every rank: a rank that computed
in that moment would keep the others waiting, one term after the other. So it takes a copy, and computes when everyone
has what it needs; the ranks compute at the same time. Rejected: every rank computes all terms and keeps the gradient
of its own rows, which takes as long as one rank alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_mhe.training.engines.deepspeed.deferred import LateGradient, everything
from hf_mhe.training.mean_energy import with_range
from hf_mhe.training.terms import Term


class Whole:
    """One term on one rank; while it is made, its tensors are gathered.

    Args:
        term: whose objective needs the whole matrix.
        tensors: of its group.
        mine: whether this rank computes it.
    """

    def __init__(self, term: Term, tensors: Sequence[Tensor], *, mine: bool) -> None:
        self._term = term
        self.wanted = [tensor.requires_grad and torch.is_grad_enabled() for tensor in tensors]
        self.gradients: list[Tensor | None] = [None] * len(tensors)
        self._values = [_kept(tensor) for tensor in tensors] if mine else []

    def compute(self) -> Tensor:
        """The objective, 0-dim, detached; its gradients are kept for the backward pass. Only once, where it is `mine`.

        Raises:
            MHEError: as `Objective.value`.
        """
        values, self._values = self._values, []
        leaves = [with_range(value).requires_grad_(need) for value, need in zip(values, self.wanted, strict=True)]
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.set_grad_enabled(bool(inputs)):
            value = self._term.objective.value(self._term.group.assemble(leaves))
        if value.requires_grad:
            found = iter(torch.autograd.grad(value, inputs, materialize_grads=True))
            self.gradients = [next(found) if need else None for need in self.wanted]
        return value.detach()


def _kept(tensor: Tensor) -> Tensor:
    """The values of a tensor, which ZeRO 3 takes away again."""
    values = tensor.detach()
    return values.clone() if hasattr(tensor, "ds_id") else values


class Reached(torch.autograd.Function):
    """A zero, 0-dim, whose gradient reaches the tensors of a term as that of its objective on the rank that has it."""

    @staticmethod
    def forward(ctx: Any, whole: Whole, late: Sequence[LateGradient], *tensors: Tensor) -> Tensor:
        ctx.whole, ctx.late = whole, late
        ctx.kinds = [(tensor.shape, tensor.dtype) for tensor in tensors]
        dtype = torch.float32
        for tensor in tensors:
            dtype = torch.promote_types(dtype, tensor.dtype)
        return tensors[0].new_zeros((), dtype=dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        zeros: list[Tensor | None] = []
        for (shape, dtype), gradient, late, need in zip(
            ctx.kinds, ctx.whole.gradients, ctx.late, ctx.needs_input_grad[2:], strict=True
        ):
            if not need:
                zeros.append(None)
            elif gradient is None:
                zeros.append(late.expect(upstream.new_zeros((), dtype=dtype).expand(shape)))
            else:
                zeros.append(late.add(everything, (gradient * upstream).to(dtype), shape))
        return None, None, *zeros

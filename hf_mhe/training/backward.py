"""A call at the end of the backward pass in which a value takes part, when the gradients are complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def at_the_end(value: Tensor, then: Callable[[Tensor], None]) -> Tensor:
    """The value; `then` is called with its gradient after everything else of the backward pass, on every rank alike.

    What `then` raises comes out of the call of `backward`.
    """
    watched: Tensor = _AtTheEnd.apply(value, then)
    return watched


class _AtTheEnd(torch.autograd.Function):
    """Identity; calls `then` with the gradient that came, at the end of the backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, then: Callable[[Tensor], None]) -> Tensor:
        ctx.then = then
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        queue = torch.autograd.Variable._execution_engine.queue_callback
        # DDP and FSDP2 complete the gradients in callbacks of their own, queued during the pass: be behind those.
        queue(lambda: queue(lambda: ctx.then(upstream)))
        return upstream, None

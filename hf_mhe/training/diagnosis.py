"""Early diagnosis: how long the penalty's gradient is beside the task's, and warnings of what is likely not meant.

Note [The ratio]
It is taken at the end of a backward pass that the penalty takes part in, before any clipping. There `.grad` holds what
the optimizer will see, all micro-batches and all ranks in it. The penalty's part of it is known: its gradient at the
same weights, times what autograd brought to the penalty, which has a gradient scaler's factor and whatever the loss
was divided by in it. The rest is the task's. The ratio is the norm of the one over the norm of the other, over the
parameters that the penalty reaches; where the two balance, at a stationary point of the objective, it is 1. A penalty
that counts for several steps (`every_n_steps`) is divided by their number, for the task's steps come in between.

The penalty is walked once more for it, after the activations are gone: no memory is held for it during the pass. It is
done at the first, second, fourth, eighth, ... step that computes the penalty, which costs nothing in the long run.

Not taken inside a compiled graph, nor where an engine keeps gradients elsewhere than in `.grad`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_mhe.training.backward import at_the_end

DWARFS = 10.0  # at a tenth of the step's length in the task's direction, the task is hardly learnt


class GradientRatio:
    """The ratio of the norms of the penalty's and the task's gradient, taken now and then."""

    def __init__(self) -> None:
        self._latest: float | None = None
        self._warned = False

    def drain(self) -> dict[str, float]:
        """The ratio taken since the last call, if one was."""
        latest, self._latest = self._latest, None
        return {} if latest is None else {"mhe_gradient_ratio": latest}

    def watch(self, penalty: Tensor, model: nn.Module, again: Callable[[], Tensor], *, steps: float = 1) -> Tensor:
        """The penalty, 0-dim, in whose backward pass the ratio is taken.

        Args:
            penalty: as it is added to the loss, for so many `steps`.
            model: whose parameters it reaches.
            again: computes it once more, undivided.
            steps: how many optimizer steps it counts for.
        """

        def measure(upstream: Tensor) -> None:
            ratio = _ratio(model, again, upstream)
            if ratio is not None:
                self._latest = ratio / steps
                self._warn(self._latest)

        return at_the_end(penalty, measure)

    def _warn(self, ratio: float) -> None:
        if ratio > DWARFS and not self._warned:
            self._warned = True
            if (
                torch.distributed.is_available()
                and torch.distributed.is_initialized()
                and torch.distributed.get_rank()
            ):
                return  # the gradients are the same on every rank: one says it for all
            warnings.warn(
                f"the gradient of MHE's penalty is {ratio:.3g} times as long as the task's, over the parameters that "
                f"are regularized: the task is hardly learnt. Divide the weights in MHEConfig by some {ratio:.0f}, or "
                "let them rise (warmup_steps)",
                UserWarning,
                stacklevel=2,
            )


class UnsaidAccumulation:
    """A warning, once, where penalties add up in the gradients because no optimizer step comes between them."""

    def __init__(self) -> None:
        self._then: list[tuple[int, int]] | None = None
        self._warned = False

    def watch(self, tensors: Sequence[Tensor]) -> None:
        """Look at the parameters that are about to get a penalty, of which the loop did not say when it is due.

        An optimizer changes parameters in place, which torch counts. One that a gradient scaler skipped leaves them as
        they are, but the gradients have been taken away by then.
        """
        now = [(id(tensor), tensor._version) for tensor in tensors]
        if now == self._then and not self._warned and any(_has_gradient(tensor) for tensor in tensors):
            self._warned = True
            warnings.warn(
                "a second penalty is added to gradients that still hold the last one: no optimizer step came between "
                "them. Where gradients are accumulated by hand, say which micro-batch is the last, "
                "regularizer(loss / steps, sync=(i + 1) % steps == 0), or lambda is multiplied by their number",
                UserWarning,
                stacklevel=3,
            )
        self._then = now


def _has_gradient(tensor: Tensor) -> bool:
    gradient = tensor.grad if tensor.is_leaf else None
    if isinstance(gradient, DTensor):
        gradient = gradient.to_local()
    return gradient is not None and bool(gradient.any())


def is_due(evaluation: int) -> bool:
    """Whether the ratio is taken at this evaluation of the penalty, counted from 1: at the powers of two."""
    return evaluation & (evaluation - 1) == 0


def _ratio(model: nn.Module, again: Callable[[], Tensor], upstream: Tensor) -> float | None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        gradients = torch.autograd.grad(again(), parameters, allow_unused=True)
    of_penalty = of_task = 0.0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            return None
        own = gradient * upstream.to(gradient.device, gradient.dtype)
        of_penalty += _norm(own) ** 2
        of_task += _norm(parameter.grad - own) ** 2
    # An overflow under a gradient scaler, or a task that does not reach these parameters, has no ratio.
    if not 0 < of_task < math.inf:
        return None
    ratio = math.sqrt(of_penalty / of_task)
    return ratio if math.isfinite(ratio) else None


def _norm(tensor: Tensor) -> float:
    norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

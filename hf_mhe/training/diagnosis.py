"""Early diagnosis: the penalty's gradient beside the task's, by their norms, and warnings of what is hardly meant.

Note [The ratio]
It is taken at the end of a backward pass that the penalty takes part in, before any clipping. There `.grad` holds what
the optimizer will see, all micro-batches and all ranks in it. The penalty's part of it is known: its gradient at the
same weights, times what autograd brought to the penalty, which has a gradient scaler's factor and whatever the loss
was divided by in it. The rest is the task's. The ratio is the norm of the one over the norm of the other, over the
parameters that the penalty reaches; where the two balance, at a stationary point of the objective, it is 1. A penalty
that counts for several steps (`every_n_steps`) is divided by their number, for the task's steps come in between.

The penalty is walked once more for it, after the activations are gone: no memory is kept for it during the pass. It is
done at the first, second, fourth, eighth, ... step that computes the penalty, which costs nothing in the long run.

Not taken inside a compiled graph, nor where an engine keeps gradients elsewhere than in `.grad`.

Note [Too strong]
A penalty that acts makes itself smaller. In `recipes/EVIDENCE.md`, fine-tuning a redundant checkpoint, the weight that
did best began with a ratio of 511; after 64 steps it was 0.4. So the first ratios say nothing of whether a weight is
too large: it is the one that is still above `DWARFS` at the 16th penalty, and has not halved since the 8th. Warning at
the first one, which would save 15 steps, was wrong about the best weight.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_mhe.training.backward import at_the_end

DWARFS = 10.0  # at a tenth of the step's length in the task's direction, the task is hardly learnt
SETTLED = 5  # ratios, of which this one is the 16th penalty's; see Note [Too strong]


class GradientRatio:
    """The ratio of the norms of the penalty's and the task's gradient, taken now and then."""

    def __init__(self) -> None:
        self._latest: float | None = None
        self._previous = math.inf  # before the one that is being judged
        self._taken = 0
        self._said: set[str] = set()
        self._task_was_zero = False

    def drain(self) -> dict[str, float]:
        """The ratio taken since the last call, if one was."""
        latest, self._latest = self._latest, None
        return {} if latest is None else {"mhe_gradient_ratio": latest}

    def watch(self, penalty: Tensor, model: nn.Module, again: Callable[[], Tensor], *, steps: float = 1) -> Tensor:
        """The penalty, 0-dim, in whose backward pass the ratio is taken.

        Args:
            penalty: as it is added to the loss, for `steps` optimizer steps.
            model: whose parameters it reaches.
            again: computes it once more, undivided.
            steps: how many optimizer steps it counts for.
        """

        def measure(upstream: Tensor) -> None:
            if not upstream:
                return  # an earlier pass of the step has brought the penalty
            norms = _norms(model, again, upstream)
            if norms is not None:
                self._judge(norms, steps)

        return at_the_end(penalty, measure)

    def _judge(self, norms: _Norms, steps: float) -> None:
        if norms.infinite is not None:
            self._warn(
                "infinite",
                f"the gradient of MHE's penalty on {norms.infinite!r} is infinite or too long for its norm to be a "
                "number, and so is its ratio to the task's: clipping by the norm makes every gradient zero, and "
                "without it the step goes nowhere. Look at the lengths of that layer's neurons, or exclude it",
            )
            return
        # A head that starts at zero lets nothing through to the body in the first step, and in the first step alone.
        was_zero, self._task_was_zero = self._task_was_zero, norms.task == 0
        if norms.task == 0 and was_zero and norms.penalty > 0:
            self._warn(
                "zero",
                "the task's gradient is zero over all parameters that MHE regularizes, and the ratio of the penalty's "
                "to it infinite: nothing but the penalty moves them. Does the loss come from this model?",
            )
        # An overflow under a gradient scaler, or a task that does not reach these parameters, has no ratio.
        if not 0 < norms.task < math.inf or not math.isfinite(norms.penalty):
            return
        self._latest = ratio = norms.penalty / norms.task / steps
        self._taken += 1
        if self._taken >= SETTLED and ratio > max(DWARFS, self._previous / 2):
            self._warn(
                "dwarfs",
                f"the norm of the penalty's gradient is still {ratio:.3g} times the task's, over the parameters that "
                f"are regularized: the task is hardly learnt. Divide the weights in MHEConfig by some {ratio:.0f}, or "
                "let them rise (warmup_steps)",
            )
        self._previous = ratio

    def _warn(self, about: str, message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            if speaks():
                warnings.warn(message, UserWarning, stacklevel=2)


class UnsaidAccumulation:
    """A warning, once, where no optimizer step comes between penalties, and nothing says when one does."""

    def __init__(self) -> None:
        self._then: list[tuple[int, int]] | None = None
        self._warned = False

    def watch(self, tensors: Sequence[Tensor], *, once: bool) -> None:
        """Look at the parameters that are about to get a penalty, of which the loop did not say when it is due.

        It counts `once` where the optimizer is known; else the penalties add up.

        An optimizer changes parameters in place, which torch counts. One that a gradient scaler skipped leaves them as
        they are, but the gradients have been taken away by then.
        """
        now = [(id(tensor), tensor._version) for tensor in tensors]
        if now == self._then and not self._warned and any(_has_gradient(tensor) for tensor in tensors):
            self._warned = True
            otherwise = "it is computed in each and counts in the first" if once else "lambda is multiplied"
            warnings.warn(
                "a second penalty comes to gradients that still hold the last one: no optimizer step came between "
                "them. Where gradients are accumulated by hand, say which micro-batch is the last, "
                f"regularizer(loss / steps, sync=(i + 1) % steps == 0); otherwise {otherwise}",
                UserWarning,
                stacklevel=3,
            )
        self._then = now


def _has_gradient(tensor: Tensor) -> bool:
    gradient = tensor.grad if tensor.is_leaf else None
    if isinstance(gradient, DTensor):
        gradient = gradient.to_local()
    return gradient is not None and bool(gradient.any())


def speaks() -> bool:
    """Whether this process warns of what is the same on every rank: one says it for all."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank())


def is_due(evaluation: int) -> bool:
    """Whether the ratio is taken at this evaluation of the penalty, counted from 1: at the powers of two."""
    return evaluation & (evaluation - 1) == 0


class _Norms(NamedTuple):
    """Over the parameters that the penalty reaches.

    Attributes:
        penalty, task: the norms of the two gradients, both with what the backward pass multiplied them by.
        infinite: the parameter on which the penalty's own gradient has no finite norm, or None.
    """

    penalty: float
    task: float
    infinite: str | None = None


def _norms(model: nn.Module, again: Callable[[], Tensor], upstream: Tensor) -> _Norms | None:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    with torch.enable_grad():
        gradients = torch.autograd.grad(again(), [parameter for _, parameter in named], allow_unused=True)
    of_penalty = of_task = 0.0
    for (name, parameter), gradient in zip(named, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            return None
        if not math.isfinite(_norm(gradient)):
            return _Norms(math.inf, math.nan, name)
        own = gradient * upstream.to(gradient.device, gradient.dtype)
        of_penalty += _norm(own) ** 2
        of_task += _norm(parameter.grad - own) ** 2
    return _Norms(math.sqrt(of_penalty), math.sqrt(of_task))


def _norm(tensor: Tensor) -> float:
    norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

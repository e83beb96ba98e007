"""The penalty on its way into the gradients that an optimizer step gets, in which it counts once.

Note [Several backward passes before one step]
Sharpness-aware minimization throws the gradients of the first pass away, a search along a line those of many;
adversarial training adds the passes up. So a penalty is put into every pass, and whether it has a gradient there is
decided within the pass: it has, unless the current gradients hold the penalty of this step. They do not once they
were cleared, by None or by zeros. Where the weights were changed in between, the penalty is that of the changed
weights, like the loss.
Rejected: to decide when the loss is computed, for `zero_grad` may come between that and `backward`; and to add the
penalty's gradient before the optimizer steps, for clipping and the reduction over ranks come earlier.

Note [What cannot be seen]
A pass whose loss has no penalty, onto gradients that were cleared: a hook on one of the parameters notices it, and the
step is refused. Gradients that were taken out by `torch.autograd.grad`, or put together from several passes, are no
longer followed: taken out twice in one step is warned of, and replaced after two penalties is refused. What DeepSpeed
keeps of the gradients is not seen: a second penalty before one step of its engine is refused.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hf_mhe.errors import MHEError
from hf_mhe.training.backward import at_the_end
from hf_mhe.training.engines.dtensor.fsdp2 import as_updated
from hf_mhe.training.engines.protocol import Stepper
from hf_mhe.training.messages import CLEARED, IN_PART, PUT_TOGETHER, TAKEN_OUT, TWICE_IN_DEEPSPEED, UNUSED
from hf_mhe.training.optimizers import OptimizerSteps

_NO_PASS = -1


class Delivery:
    """The penalty of the current optimizer step.

    Args:
        model: what is trained.
        parameters: gives the parameters that the penalty may reach, as the optimizer has them.
    """

    # What is known of the current step: see `_forget`.
    _pass: int
    _before: list[_Mark] | None
    _marks: list[_Mark]
    _passes: int
    _taken_out: int
    _afterwards: _Mark | None

    def __init__(self, model: nn.Module, parameters: Callable[[], Sequence[Tensor]]) -> None:
        self._model, self._parameters = model, parameters
        self._steps = OptimizerSteps(self)
        self._number = 0  # of the current step
        self._is_begun = False
        self._taken = 0  # optimizer steps at its last call
        self._stepper: Stepper | None = None
        self._stepper_steps = 0
        self._current: Sequence[Tensor] = ()
        self._weights: list[tuple[int, int]] = []  # the parameters at the last call, and their versions
        self._upstream: Tensor | None = None  # what the last pass brought to the penalty
        self._said: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        # No gradients, and no current step, go to another process.
        return {"model": self._model, "parameters": self._parameters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def begin(self, stepper: Stepper | None, *, new: bool | None = None) -> bool:
        """A loss is about to get the penalty: whether that begins an optimizer step, or is one more pass of the last.

        Args:
            stepper: the engine's, which takes the steps in place of the loop.
            new: what a loop says of it that counts its steps.
        """
        if new is None:
            new = self._is_new(stepper)
        if new:
            self._forget()
            self._number += 1
        self._is_begun = True
        self._taken, self._stepper = self._steps.taken, stepper
        self._stepper_steps = 0 if stepper is None else stepper.global_steps
        self._current = self._parameters()
        self._weights = _versions(self._current)
        return new

    def end(self) -> None:
        """The next call begins a step."""
        self._forget()
        self._is_begun = False

    def is_done(self) -> bool:
        """Whether the current gradients hold the penalty of this step.

        Raises:
            MHEError: some do and some do not, or DeepSpeed has them.
        """
        if not self._is_left or self._is_lost:
            return False
        if self._stepper is not None:
            raise MHEError(TWICE_IN_DEEPSPEED)
        kept, cleared, touched = [], [], []
        for mark in self._marks:
            if mark.is_untouched():
                kept.append(mark)
            elif mark.parameter.grad is None or not mark.is_there():
                cleared.append(mark)
            else:
                touched.append(mark)
        if kept:
            cleared += [mark for mark in touched if _is_zero(mark.parameter.grad)]
        else:
            kept = touched if any(not _is_zero(mark.parameter.grad) for mark in touched) else []
        if kept and cleared:
            raise MHEError(IN_PART.format(cleared=len(cleared), all=len(self._marks)))
        return bool(kept)

    def carry(self, penalty: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The penalty, whose gradient comes to the tensors once in the current step, however many passes it has.

        Args:
            penalty: 0-dim, differentiable.
            tensors: the parameters that it reaches, as the optimizer has them.
        """
        self._is_computed = True
        number = self._number
        noted = at_the_end(penalty, lambda _: self._note(number, tensors))
        carried: Tensor = _Carried.apply(noted, self, number, tensors)
        return carried

    def arrive(self, number: int, upstream: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """What the penalty gets of the gradient that comes to it: everything, or nothing."""
        if number != self._number:
            return upstream  # of a call whose step nobody could tell from the next
        current = torch._C._current_graph_task_id()
        if self._pass == current or self.is_done():
            return torch.zeros_like(upstream)
        self._pass, self._upstream = current, upstream.detach()
        self._before = _marks(tensors)
        return upstream

    def followed(self) -> Sequence[Tensor]:
        """The parameters whose optimizers count: those that get the penalty, or all while none of these trains."""
        return self._current or self._parameters() or as_updated(self._model, list(self._model.parameters()))

    def before_step(self, optimizer: Optimizer) -> None:
        """See that the penalty, where it was computed, is in the gradients.

        Raises:
            MHEError: it is not, or how often is unknown.
        """
        if self._is_computed and not self._is_used:
            self._warn(UNUSED)
        witness = self._afterwards
        if witness is None or not self._is_left:
            return
        if not any(witness.parameter is each for group in optimizer.param_groups for each in group["params"]):
            return
        if self._is_lost and witness.is_there():
            raise MHEError(CLEARED)
        if self._passes > 1 and witness.parameter.grad is not None and not witness.is_there():
            raise MHEError(PUT_TOGETHER.format(passes=self._passes))

    def after_step(self) -> None:
        """The gradients were used."""
        self._forget()

    def _note(self, number: int, tensors: Sequence[Tensor]) -> None:
        """The pass is done: see where the penalty's gradient went."""
        if number != self._number or self._before is None:
            return
        before, self._before = self._before, None
        self._is_used = True
        if self._stepper is None and all(mark.is_untouched() for mark in before):
            self._taken_out += 1
            if self._taken_out > 1:
                self._warn(TAKEN_OUT)
            return
        self._is_left, self._is_lost = True, False
        self._passes += 1
        self._marks = _marks(tensors)
        self._watch_one()

    def _is_new(self, stepper: Stepper | None) -> bool:
        if not self._is_begun or stepper is not self._stepper:
            return True
        if stepper is not None:
            return stepper.global_steps != self._stepper_steps
        if self._steps.taken != self._taken:
            return True
        if self._steps.is_running:
            return False
        # Where nobody is known who steps, a call stands for a step.
        return not self._steps.is_optimizer_known() or self._was_skipped()

    def _was_skipped(self) -> bool:
        """Whether a gradient scaler took the gradients away instead of a step: see `hf_mhe.training.schedule`."""
        if self._upstream is None or math.isclose(float(self._upstream), 1.0, rel_tol=1e-3):
            return False
        if self._weights != _versions(self._parameters()):
            return False
        if self._is_computed:
            return self._is_left and not self.is_done()
        return all(tensor.grad is None or _is_zero(tensor.grad) for tensor in self._parameters())

    def _forget(self) -> None:
        """Nothing has been done for a step."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._pass = _NO_PASS
        self._before = None
        self._marks = []
        self._is_computed = False
        self._is_used = False  # in a backward pass
        self._is_left = False  # in the gradients
        self._is_cleared = False
        self._is_lost = False  # and something else is there
        self._passes = 0  # that left it there
        self._taken_out = 0
        self._afterwards = None

    def _watch_one(self) -> None:
        """Look out for passes without a penalty, by one of the parameters that this pass came to."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._afterwards, self._is_cleared = [], None, False
        witness = next((mark for mark in self._marks if mark.can_be_watched()), None)
        if witness is not None:
            parameter: Any = witness.parameter
            self._afterwards = witness
            look, record = weakref.WeakMethod(self._look), weakref.WeakMethod(self._record)
            self._handles = [
                parameter.register_hook(lambda _: _call(look)),
                parameter.register_post_accumulate_grad_hook(lambda _: _call(record)),
            ]

    def _look(self) -> None:
        """A gradient is about to come to the parameter that is watched, or to be taken out of it."""
        witness = self._afterwards
        if witness is None or torch._C._current_graph_task_id() == self._pass or witness.is_untouched():
            return
        gradient = witness.parameter.grad
        self._is_cleared = gradient is None or _is_zero(gradient)

    def _record(self) -> None:
        """A gradient has come to it."""
        if self._afterwards is not None:
            self._afterwards = _mark(self._afterwards.parameter)
            self._is_lost, self._is_cleared = self._is_lost or self._is_cleared, False

    def _warn(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, UserWarning, stacklevel=3)


class _Carried(torch.autograd.Function):
    """Identity, whose gradient is what `Delivery.arrive` makes of it."""

    @staticmethod
    def forward(ctx: Any, penalty: Tensor, delivery: Delivery, number: int, tensors: Sequence[Tensor]) -> Tensor:
        ctx.delivery, ctx.number, ctx.tensors = delivery, number, tensors
        return penalty.view_as(penalty)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.delivery.arrive(ctx.number, upstream, ctx.tensors), None, None, None


class _Mark(NamedTuple):
    """The gradient that a parameter had; it is not kept alive."""

    parameter: Tensor
    gradient: weakref.ref[Tensor] | None
    version: int

    def is_there(self) -> bool:
        """Whether the parameter has this gradient still, changed in place perhaps."""
        gradient = self.parameter.grad
        return self.gradient is None if gradient is None else self.gradient is not None and self.gradient() is gradient

    def is_untouched(self) -> bool:
        """Whether the parameter has this gradient as it was."""
        return self.is_there() and self.version == _version(self.parameter.grad)

    def can_be_watched(self) -> bool:
        """Whether hooks on the parameter see its gradients; FSDP2 puts another in its place."""
        return self.gradient is not None and self.parameter.is_leaf and not isinstance(self.parameter, DTensor)


def _versions(parameters: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(id(parameter), parameter._version) for parameter in parameters]


def _marks(parameters: Sequence[Tensor]) -> list[_Mark]:
    return [_mark(parameter) for parameter in parameters if parameter.is_leaf]


def _mark(parameter: Tensor) -> _Mark:
    gradient = parameter.grad
    return _Mark(parameter, None if gradient is None else weakref.ref(gradient), _version(gradient))


def _version(gradient: Tensor | None) -> int:
    if gradient is None:
        return -1
    if isinstance(gradient, DTensor):  # changed as such, or by FSDP2 in its local part
        return gradient._version + gradient._local_tensor._version
    return gradient._version


def _is_zero(gradient: Tensor | None) -> bool:
    """Whether nothing is in a gradient; of a sharded one, on every rank alike."""
    assert gradient is not None
    if isinstance(gradient, DTensor):
        return float(torch.linalg.vector_norm(gradient).full_tensor()) == 0
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return not bool(values.any())


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    found = method()
    if found is not None:
        found()

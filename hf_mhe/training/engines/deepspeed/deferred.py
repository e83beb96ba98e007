"""Gradients that ZeRO gets when it expects them: with the task's, for a whole parameter, and in every micro-batch.

Note [Late gradients]
Autograd runs the penalty's nodes at the beginning of the backward pass. Were they to give gradients of the parameters'
full size, all of them would be stored, a whole model on every rank, until the task's are added. So they give a zero
of no size, and a hook adds the gradient of the rows when the parameter's own gradient has come.

Note [Parameters that the forward pass does not reach]
Under ZeRO 3 no module's backward pass gathers them, and autograd accumulates only into a parameter of the gradient's
shape: the hook gathers them, and ZeRO lets them go before the optimizer steps, with everything that is still gathered.
And ZeRO 3, and ZeRO 1 and 2 where the optimizer is offloaded, keep a parameter's last gradient over the optimizer step
until another comes: the next penalty would be added to the last one, or the last one be applied again. So from then on
the output of every forward pass is tied to them by an identity that gives them zeros.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_mhe.training.engines.forward_output import change_first

RowsOf = Callable[[Tensor], Tensor]
"""From a whole parameter some of its neurons, (m, d)."""


@contextmanager
def gathered(model: nn.Module, tensors: Iterable[Tensor]) -> Iterator[None]:
    """The tensors whole within the context; those that ZeRO has gathered already, for its own use, are left to it."""
    partitioned: list[Any] = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    in_flight: Any = getattr(model, "ds_inflight_param_registry", {})
    for parameter in partitioned:
        if parameter in in_flight:
            in_flight.pop(parameter).wait()
    away = [parameter for parameter in partitioned if _is_away(parameter)]
    if not away:
        yield
        return
    with sys.modules["deepspeed"].zero.GatheredParameters(away):
        yield


def _is_away(tensor: Any) -> bool:
    return hasattr(tensor, "ds_id") and tensor.ds_status.name == "NOT_AVAILABLE"


class LateGradient:
    """Gradients of rows of one parameter, which are added to its own when that comes in the backward pass."""

    def __init__(self, model: nn.Module, parameter: Tensor) -> None:
        self._model = model
        self._parameter: Any = parameter
        self._hook: RemovableHandle | None = None
        self._rows: list[tuple[RowsOf, Tensor]] = []

    def add(self, rows_of: RowsOf, gradient: Tensor, shape: torch.Size) -> Tensor | None:
        """Keep rows until the parameter's own gradient comes; returns zeros for autograd, once in a backward pass."""
        self._rows.append((rows_of, gradient))
        return self.expect(gradient.new_zeros((), dtype=self._parameter.dtype).expand(shape))

    def expect(self, zeros: Tensor) -> Tensor | None:
        """Register for the parameter's own gradient; returns the zeros on the first call in a backward pass."""
        if self._hook is not None:
            return None
        self._hook = self._parameter.register_hook(self._complete)
        return zeros

    def _complete(self, gradient: Tensor) -> Tensor:
        assert self._hook is not None
        self._hook.remove()
        self._hook = None
        if _is_away(self._parameter):
            self._parameter.all_gather()
            give_zeros(self._model, [self._parameter])
        rows, self._rows = self._rows, []
        if not rows:
            return gradient
        total = gradient.clone(memory_format=torch.contiguous_format)
        for rows_of, of_rows in rows:
            _add_rows(total, rows_of, of_rows)
        return total


def everything(weight: Tensor) -> Tensor:
    """All neurons of a parameter: what `rows_of` is for a gradient of full size."""
    return weight


def _add_rows(total: Tensor, rows_of: RowsOf, gradient: Tensor) -> None:
    rows = rows_of(total)
    if rows.untyped_storage().data_ptr() == total.untyped_storage().data_ptr():
        rows.add_(gradient)
        return
    # The layout copies (interleaved projections, transposed kernels): its transpose is what autograd makes of it.
    with torch.enable_grad():
        leaf = torch.empty_like(total, requires_grad=True)
        (whole,) = torch.autograd.grad(rows_of(leaf), leaf, gradient)
    total.add_(whole)


class _Unreached:
    """A forward hook that gives zeros to parameters that the task does not reach; see the note above."""

    def __init__(self) -> None:
        self._parameters: dict[int, Tensor] = {}

    def add(self, parameters: Iterable[Tensor]) -> None:
        self._parameters.update((id(parameter), parameter) for parameter in parameters)

    def __call__(self, model: nn.Module, args: Any, output: Any) -> Any:
        if not model.training or not torch.is_grad_enabled():
            return None
        parameters = [parameter for parameter in self._parameters.values() if parameter.requires_grad]
        with gathered(model, parameters):  # autograd notes their shapes
            return change_first(output, lambda tensor: _WithZeros.apply(tensor, model, *parameters))[0]


def give_zeros(model: nn.Module, parameters: Iterable[Tensor]) -> None:
    """From the next forward pass of the model on, give its parameters zeros beside what the task gives them."""
    unreached = next((hook for hook in model._forward_hooks.values() if isinstance(hook, _Unreached)), None)
    if unreached is None:
        unreached = _Unreached()
        model.register_forward_hook(unreached)
    unreached.add(parameters)


class _WithZeros(torch.autograd.Function):
    """Identity in its first argument; the parameters, gathered when it is applied, get zeros."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, model: nn.Module, *parameters: Tensor) -> Tensor:
        ctx.late = [LateGradient(model, parameter) for parameter in parameters]
        ctx.zeros = [parameter.new_zeros(()).expand(parameter.shape) for parameter in parameters]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        expected = zip(ctx.late, ctx.zeros, strict=True)
        return gradients[0], None, *(late.expect(zeros) for late, zeros in expected)

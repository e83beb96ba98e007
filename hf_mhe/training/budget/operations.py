"""The floating-point operations of a training step, counted in its forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


class ForwardOperations:
    """Counts the operations of a module's forward passes in training, until `stop`.

    The backward pass has as many for the gradients of the activations, and as many again for those of the parameters,
    as far as these are trained.

    Args:
        model: the module; its own hooks are used, so that wrappers around it do not matter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._counted = 0
        self._counters: list[_Counter | None] = []
        self._hooks = (
            model.register_forward_pre_hook(self._begin, prepend=True),
            model.register_forward_hook(self._end, always_call=True),
        )

    def stop(self) -> float:
        """The operations of forward and backward passes so far; 0 if none was seen, as in a compiled graph."""
        self.remove()
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self._model.parameters()]
        trained = sum(size for size, trains in sizes if trains) / max(1, sum(size for size, _ in sizes))
        return self._counted * (2 + trained)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        counts = module.training and torch.is_grad_enabled() and not self._counters
        counter = _Counter() if counts else None
        self._counters.append(counter)
        if counter is not None:
            counter.__enter__()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._counters:
            return
        counter = self._counters.pop()
        if counter is not None:
            counter.__exit__(None, None, None)
            self._counted += counter.operations


class _Counter(TorchDispatchMode):
    """Adds up the operations of matrix products, convolutions and attention, by torch's own formulas.

    `torch.utils.flop_counter.FlopCounterMode` counts a DTensor's operation as a whole on every rank, and keeps hooks
    on the modules' backward passes; neither is wanted here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # come again with this rank's local tensor
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.operations += int(formula(*args, **kwargs, out_val=out))
        return out

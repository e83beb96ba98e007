"""What a model's own forward multiplies: queries, keys and values where attention consumes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_mhe.neurons import NeuronGroup

_PRODUCTS = {torch.matmul, torch.bmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.baddbmm}
_SDPA = nn.functional.scaled_dot_product_attention

Attended = dict[str, Tensor]


class _Products(TorchFunctionMode):
    """Notes the operands of attention's products: of two tensors that both depend on the input (no weight is 3-D)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.seen is not None:
            if func is _SDPA:
                query, key, value = (
                    kwargs.get(n, args[i] if i < len(args) else None) for i, n in enumerate(("query", "key", "value"))
                )
                self.seen += [(query, key.mT), (query, value)]
            elif func in _PRODUCTS:
                operands = [*args, *(kwargs[name] for name in ("batch1", "batch2") if name in kwargs)][-2:]
                if all(operand.ndim >= 3 for operand in operands):
                    self.seen.append((operands[0], operands[1]))
        return func(*args, **kwargs)


@contextmanager
def attention(modules: dict[str, nn.Module]) -> Iterator[dict[str, Attended]]:
    """Module name -> its "q", "k" (..., length, head) and "v" of the next forward, cloned."""
    found: dict[str, Attended] = {}
    mode = _Products()

    def before(*_: Any) -> None:
        mode.seen = []

    def after(name: str) -> Any:
        def note(*_: Any) -> None:
            assert mode.seen, f"{name} multiplies nothing"
            (query, key), (_, value) = mode.seen[0], mode.seen[-1]
            found[name] = {"q": query.clone(), "k": key.mT.clone(), "v": value.clone()}
            mode.seen = None

        return note

    handles = [module.register_forward_pre_hook(before) for module in modules.values()]
    handles += [module.register_forward_hook(after(name)) for name, module in modules.items()]
    try:
        with mode:
            yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def zeroed(group: NeuronGroup) -> Iterator[None]:
    """A group's neurons set to zero in the stored weight, wherever they lie there, and put back at the end."""
    (stored,) = group.tensors()
    with torch.enable_grad():
        (mask,) = torch.autograd.grad(group.matrix().sum(), stored)
    kept = stored.detach().clone()
    with torch.no_grad():
        stored[mask != 0] = 0
    assert not group.matrix().any()
    try:
        yield
    finally:
        with torch.no_grad():
            stored.copy_(kept)


def without_bias(model: nn.Module) -> nn.Module:
    """A model in which a projection whose weight is zero gives zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "norm" not in name.lower() and "ln" not in name:
                parameter.zero_()
    return model.eval()

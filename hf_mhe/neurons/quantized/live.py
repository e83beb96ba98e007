"""Quantized layers of a live model: the weight that a layer computes with, read through the format's own library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.neurons.model.weight import Weight


def of_class(value: object, package: str, name: str) -> bool:
    """Whether an object's class, or a base of it, is `name` of `package`, which is not imported for the question."""
    return any(cls.__name__ == name and cls.__module__.partition(".")[0] == package for cls in type(value).__mro__)


def quantized_weight(
    tensor_names: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    form: str,
    dequantize: Callable[[Mapping[str, Tensor]], Tensor],
    check: Callable[[], None] | None = None,
) -> Weight:
    """A weight whose tensors are read by `dequantize` and take no gradient; `form` is what its format is called.

    `check` raises where the tensors are no longer those of that format.
    """

    def combine(tensors: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return dequantize(tensors)

    def outline(tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return Weight(tensor_names, combine, outline, check=check, quantized=form, fixed=tensor_names)


def unreadable(tensor_names: tuple[str, ...], form: str, why: str) -> Weight:
    """A quantized weight whose numbers cannot be had, and why."""
    return Weight(
        tensor_names, lambda tensors: tensors[tensor_names[0]], refusal=f"quantized by {form}: {why}", quantized=form
    )


def own_parameter(module: nn.Module, attribute: str) -> Any:
    """The parameter that a module holds under a name; None where it holds none, or something else than a tensor."""
    return module._parameters.get(attribute)

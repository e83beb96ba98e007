"""Which weights are one matrix: tied layers, by one parameter, by one storage, or by one adapter."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_mhe.neurons.layout import Layout, Rows
from hf_mhe.neurons.model.weight import Weight


def identity(weight: Weight, tensors: Sequence[Tensor | None], layout: Layout) -> Hashable:
    """Equal for neurons that are one and the same matrix, whatever holds it, and whichever way round."""
    if weight.identity is None and len(tensors) == 1 and isinstance(layout, Rows) and layout.cut is None:
        (only,) = tensors
        if only is not None and not is_lazy(only) and only.dim() == 2:
            return place(only, transposed=layout.neuron_axis % 2 == 1)
    return weight.identity or tuple(map(place, tensors)), layout


def place(tensor: Tensor | None, *, transposed: bool = False) -> Hashable:
    """Where a tensor's values lie: equal for two tensors that change together, be they one object or two.

    peft ties the adapters of tied layers by two parameters over one storage, one of them `transposed`.
    """
    plain = type(tensor) in (Tensor, nn.Parameter)
    if tensor is None or not plain or tensor.layout is not torch.strided or tensor.numel() == 0:
        return id(tensor), transposed
    axes = zip(tensor.shape, tensor.stride(), strict=True)
    # Not `data_ptr`, which is 0 on the meta device.
    start = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.dtype)
    return start, tuple(reversed([*axes]) if transposed else axes)

"""Whether a tensor that a module holds has rows that can be compared: plain, strided, of real floating point."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_mhe.neurons.group import full_shape, is_dtensor
from hf_mhe.neurons.reasons import LAZY, Unseen, dtype_refusal

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def storage_refusal(tensor: Tensor) -> Unseen | None:
    """Why the rows of a tensor cannot be compared as it is stored, None where they can."""
    if is_lazy(tensor):
        return LAZY
    reason = None
    if tensor.layout is not torch.strided:
        reason = f"stored as {tensor.layout}: not a plain tensor whose rows can be compared"
    elif not is_dtensor(tensor) and is_traceable_wrapper_subclass(tensor):
        reason = f"stored as {type(tensor).__name__}: not a plain tensor whose rows can be compared"
    elif tensor.dtype not in _DTYPES:
        reason = dtype_refusal(str(tensor.dtype).removeprefix("torch."))
    return None if reason is None else Unseen.of_shape(reason, full_shape(tensor))

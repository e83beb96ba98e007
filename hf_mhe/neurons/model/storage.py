"""Whether a tensor that a module holds has rows that can be compared: plain, strided, of real floating point.

Note [Weights that are multiplied in low precision]. For training in float8 or int8, torchao can wrap a weight in a
subclass that says how it is multiplied, or how FSDP2 gathers it (accelerate's default for float8). What is inside is
the weight in its own precision, which the optimizer updates and gradients reach. It is a plain tensor. Rejected: to
take any subclass with one tensor of its own shape inside for plain, for what a subclass means is its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_mhe.neurons.group import full_shape, is_dtensor
from hf_mhe.neurons.reasons import LAZY, Unseen, dtype_refusal

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Of torchao, by name, so that it is not imported. See Note [Weights that are multiplied in low precision].
_IN_OWN_PRECISION = frozenset(
    {
        "WeightWithDynamicFloat8CastTensor",
        "TrainingWeightWrapperBaseTensor",
        "Int8MixedPrecisionTrainingLinearWeight",
    }
)


def storage_refusal(tensor: Tensor) -> Unseen | None:
    """Why the rows of a tensor cannot be compared as it is stored, None where they can."""
    if is_lazy(tensor):
        return LAZY
    reason = None
    if tensor.layout is not torch.strided:
        reason = f"stored as {tensor.layout}: not a plain tensor whose rows can be compared"
    elif not is_dtensor(tensor) and is_traceable_wrapper_subclass(tensor) and not in_own_precision(tensor):
        reason = f"stored as {type(tensor).__name__}: not a plain tensor whose rows can be compared"
    elif tensor.dtype not in _DTYPES:
        reason = dtype_refusal(str(tensor.dtype).removeprefix("torch."))
    return None if reason is None else Unseen.of_shape(reason, full_shape(tensor))


def in_own_precision(tensor: object) -> bool:
    """Whether it is one of torchao's wrappers around a weight in full; see the note above."""
    return any(
        cls.__name__ in _IN_OWN_PRECISION and cls.__module__.partition(".")[0] == "torchao"
        for cls in type(tensor).__mro__
    )

"""The precision of products and of results, and how both escape an autocast around the call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# Note [Small problems in float64]
# A handful of neurons is call overhead, and float64 costs nothing there; from 64 neurons on the errors of float32
# average out over two thousand pairs and more. So two neurons get float64's digits and three thousand get float32's
# speed.
_FLOAT64_BELOW_NEURONS = 64
_FLOAT64_BELOW = 1 << 16  # multiplications


def product_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which the products of this weight run."""
    n, d = weight.shape[-2:]
    small = (n < _FLOAT64_BELOW_NEURONS or n * n * d <= _FLOAT64_BELOW) and weight.device.type != "mps"
    return torch.float64 if weight.dtype == torch.float64 or small else torch.float32


def energy_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which results are returned: float64 for a float64 weight, float32 for every other."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


# Note [Autocast]
# Within `torch.autocast` matrix products run in half precision, except those that write in place or to `out=`: some
# of a walk's products would, and others would not. A weight in float32 has an energy in float32, so autocast is off
# inside; who wants half precision hands over a weight in half precision.
def without_autocast(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Run a function as if there were no `torch.autocast` around it, on the device of its first tensor."""

    @functools.wraps(function)
    def plain(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        weight = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if weight is None or not under_autocast(weight):
            return function(*args, **kwargs)
        with torch.autocast(weight.device.type, enabled=False):
            return function(*args, **kwargs)

    return plain


def under_autocast(weight: Tensor) -> bool:
    """Whether operations on this tensor are subject to `torch.autocast`."""
    device = weight.device.type
    return device != "meta" and torch.is_autocast_enabled(device)

"""Float8 weights without any scale: values that were cast, and stand for themselves.

Note [Cast or quantized]. `model.to(torch.float8_e4m3fn)` leaves nothing but rounded values, while every quantizer that
writes float8 keeps scales beside it. So where a config describes the model and names no quantization, and no scale
stands beside the values, they are the weight. With a scale beside them it is a quantized weight that lost its
description: to multiply or to divide, by rows or by columns, is not known, and nothing is guessed. Without a config it
cannot be known whether the scales are in another file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from hf_mhe.neurons.model.weight import Weight
from hf_mhe.neurons.quantized.format import Format
from hf_mhe.neurons.quantized.live import own_parameter, quantized_weight, unreadable
from hf_mhe.neurons.quantized.stored import Packed, Tensors, Unread
from hf_mhe.neurons.source import Get

FORM = "float8 without scales"
_DTYPES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_TORCH_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_SCALES = ("scale", "absmax", "amax", "qparams")


def live_weight(module: nn.Module, attribute: str) -> Weight | None:
    """A float8 parameter: its values, or a refusal where the module holds a scale beside it."""
    values = own_parameter(module, attribute)
    if values is None or values.dtype not in _TORCH_DTYPES:
        return None
    registered = {**module._parameters, **module._buffers}
    others = (name for name, tensor in registered.items() if tensor is not None and tensor.dtype not in _TORCH_DTYPES)
    scale = next(filter(_is_scale, others), None)
    if scale is not None:
        return unreadable((attribute,), "float8", f"how it makes a weight with {scale} beside it is not known")
    return quantized_weight(
        (attribute,), tuple(values.shape), torch.float32, FORM, lambda tensors: tensors[attribute].float()
    )


def stored_weights(tensors: Tensors) -> Iterator[Packed | Unread]:
    """The float8 weights that no format with scales has taken. See Note [Cast or quantized]."""
    for name, shape in tensors.shapes.items():
        if tensors.method or len(shape) < 2 or tensors.dtype(name) not in _DTYPES:
            continue
        scales = _scales_beside(tensors, name)
        if scales:
            yield Unread(
                (name, *scales),
                f"float8 values with {scales[0]} beside them, and config.json has no quantization_config that says "
                "how the two make a weight",
            )
        elif tensors.role(name) == "parameter":
            yield Packed(name, (name,), shape, FORM, partial(_read, name))


def _read(name: str, get: Get) -> Tensor:
    return get(name).float()


def _scales_beside(tensors: Tensors, name: str) -> list[str]:
    """The scales of a weight: `weight_scale` in its own module, or `weight.scale`; not those of a submodule."""
    module = name.rpartition(".")[0]
    found = []
    for other in tensors.shapes:
        own = other.rpartition(".")[0] == module or other.startswith(f"{name}.")
        if own and tensors.dtype(other) not in _DTYPES and _is_scale(other.removeprefix(f"{module}.")):
            found.append(other)
    return found


def _is_scale(name: str) -> bool:
    return any(word in name.lower() for word in _SCALES)


FORMAT = Format(FORM, stored_weights, live_weight=live_weight, left_over=True)

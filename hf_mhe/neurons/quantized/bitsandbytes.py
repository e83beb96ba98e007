"""bitsandbytes: LLM.int8() with one scale per row, and the 4-bit formats nf4 and fp4 with one scale per block.

Sources: Dettmers et al., "LLM.int8()", arXiv:2208.07339; Dettmers et al., "QLoRA", arXiv:2305.14314.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hf_mhe.errors import MHEError
from hf_mhe.neurons.kinds.registry import Piece
from hf_mhe.neurons.model.weight import Weight
from hf_mhe.neurons.quantized.format import Format
from hf_mhe.neurons.quantized.live import of_class, own_parameter, quantized_weight
from hf_mhe.neurons.quantized.stored import TORCH_DTYPES, Packed, Tensors, Unread, needs
from hf_mhe.neurons.source import Get

_PACKAGE = "bitsandbytes"
_INT8 = "bitsandbytes (8-bit)"
_INT4 = "bitsandbytes (4-bit)"
_STATE = ".quant_state.bitsandbytes__"
_NESTED = ("nested_absmax", "nested_quant_map")


def live_weight(module: nn.Module, attribute: str) -> Weight | None:
    """The weight of a `Linear8bitLt`, `Linear4bit`, `Embedding4bit` ... that has been quantized."""
    parameter = own_parameter(module, attribute)
    if of_class(parameter, _PACKAGE, "Params4bit") and parameter.quant_state is not None:
        state = parameter.quant_state
        return quantized_weight(
            (attribute,),
            tuple(state.shape),
            state.dtype,
            _INT4,
            lambda t: _dequantize_4bit(t[attribute].data, cast(Any, t[attribute]).quant_state),
        )
    if of_class(parameter, _PACKAGE, "Int8Params") and parameter.dtype == torch.int8:
        return quantized_weight(
            (attribute,),
            tuple(parameter.shape),
            torch.float32,
            _INT8,
            lambda t: _dequantize_8bit(t[attribute].data, _scales(module, t[attribute])),
        )
    if parametrize.is_parametrized(module, attribute):
        return _parametrized(module, attribute)
    return None


def _parametrized(module: Any, attribute: str) -> Weight | None:
    """A parameter under `bitsandbytes.nn.parametrize`, which is how stacks of experts are stored in 4 bits."""
    chain = module.parametrizations[attribute]
    if len(chain) != 1 or not of_class(chain[0], _PACKAGE, "Bnb4bitParametrization"):
        return None
    state, part = chain[0].quant_state, f"parametrizations.{attribute}.original"
    return quantized_weight(
        (part,), tuple(state.shape), state.dtype, _INT4, lambda t: _dequantize_4bit(t[part].data, state)
    )


def _scales(module: Any, weight: Any) -> Tensor:
    """The row scales, which the first forward pass moves from the parameter to the module."""
    scales = weight.SCB if getattr(weight, "SCB", None) is not None else module.state.SCB
    if scales is None:
        raise MHEError(
            f"a {type(module).__name__} of shape {tuple(weight.shape)} has 8-bit values and no scales (SCB): "
            "move it to its device with .to() to have it quantized whole"
        )
    return scales


def _dequantize_8bit(values: Tensor, scales: Tensor) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    made: Tensor = int8_vectorwise_dequant(values, scales)
    return made


def _dequantize_4bit(values: Tensor, state: Any) -> Tensor:
    from bitsandbytes import functional

    if getattr(state, "packing_format_for_cpu", False):
        # The first forward pass on a CPU with AVX512-BF16 reorders the values, and stores the scales transposed.
        state = copy.copy(state)
        scales = state.absmax.T.reshape(-1).float()
        state.original_nested = False
        values, state = functional._convert_weight_packed_for_cpu_inverse(values, state)
        state.absmax = scales
    made: Tensor = functional.dequantize_4bit(values, state)
    return made


def stored_weights(tensors: Tensors) -> Iterator[Packed | Unread]:
    """The weights of a checkpoint that bitsandbytes quantized, 8-bit and 4-bit."""
    for name in tensors.shapes:
        if name.endswith(".SCB"):
            yield _stored_8bit(tensors, name)
        elif _STATE in name:
            yield _stored_4bit(tensors, name)


def check_complete(tensors: Tensors, taken: Container[str]) -> None:
    """Refuse values without their scales, where the config says that bitsandbytes made them.

    Raises:
        MHEError: names the weight and the tensor that is missing.
    """
    if tensors.method != _PACKAGE:
        return
    four = bool(tensors.config.get("load_in_4bit"))
    for name, shape in tensors.shapes.items():
        if name in taken or not name.endswith("weight") or len(shape) != 2:
            continue
        if tensors.dtype(name) == "I8" and not four:
            tensors.missing(name, f"{name.removesuffix('weight')}SCB", _INT8)
        if four and tensors.dtype(name) == "U8" and shape[1] == 1:
            tensors.missing(name, f"{name}{_STATE}{tensors.config.get('bnb_4bit_quant_type', 'nf4')}", _INT4)


def _stored_8bit(tensors: Tensors, scales: str) -> Packed | Unread:
    module = scales.removesuffix("SCB")
    name, names = f"{module}weight", (f"{module}weight", scales)
    shape = tensors.shape(name, scales, _INT8)
    tensors.expect_count(scales, shape[0], f"one scale for each row of {name} {shape}")
    extra = tuple(part for part in (f"{module}weight_format",) if part in tensors.shapes)
    if (lacking := needs(_PACKAGE, at_least="0.45")) is not None:
        return Unread((*names, *extra), f"quantized by {_INT8}: {lacking}")

    def dequantize(get: Get) -> Tensor:
        return turned(_dequantize_8bit(get(name), get(scales).float()))

    turned = _turn if _is_transposed(tensors, name) else _keep
    return Packed(name, (*names, *extra), _turned(shape, _is_transposed(tensors, name)), _INT8, dequantize)


def _stored_4bit(tensors: Tensors, state_name: str) -> Packed | Unread:
    name, _, _ = state_name.partition(_STATE)
    state = tensors.read_json(state_name)
    companions = ["absmax", "quant_map", *(_NESTED if state.get("nested_blocksize") else ())]
    names = (name, *(f"{name}.{companion}" for companion in companions), state_name)
    for tensor in names:
        tensors.shape(tensor, state_name, _INT4)
    if (lacking := needs(_PACKAGE, at_least="0.45")) is not None:
        return Unread(names, f"quantized by {_INT4}: {lacking}")
    try:
        shape, block = tuple(int(length) for length in state["shape"]), int(state["blocksize"])
        nested = int(state.get("nested_blocksize", 0))
        if block < 1 or nested < 0:
            raise ValueError(block)
    except (KeyError, TypeError, ValueError) as error:
        raise MHEError(f"tensor {state_name} describes no 4-bit weight: it says {state}") from error
    count = torch.Size(shape).numel()
    blocks = -(-count // block)
    # `bnb_4bit_quant_storage` may have the bytes stored as another dtype.
    nibbles = 2 * TORCH_DTYPES.get(tensors.dtype(name) or "U8", torch.uint8).itemsize
    tensors.expect_count(name, -(-count // nibbles), f"{nibbles} values of a weight {shape} in each")
    tensors.expect_count(f"{name}.absmax", blocks, f"one scale for each {block} values of {name} {shape}")
    tensors.expect_count(f"{name}.quant_map", 16, "one for each value that four bits can have")
    if nested:
        whole = f"one scale for each {nested} scales of {name} {shape}"
        tensors.expect_count(f"{name}.nested_absmax", -(-blocks // nested), whole)
        tensors.expect_count(f"{name}.nested_quant_map", 256, "one for each value that a byte can have")

    def dequantize(get: Get) -> Tensor:
        from bitsandbytes.functional import QuantState

        stats = {tensor.removeprefix(f"{name}."): get(tensor) for tensor in names[1:]}
        values = get(name)
        return turned(_dequantize_4bit(values, QuantState.from_dict(stats, device=values.device)))

    turned = _turn if _is_transposed(tensors, name) else _keep
    return Packed(name, names, _turned(shape, _is_transposed(tensors, name)), _INT4, dequantize)


def _is_transposed(tensors: Tensors, name: str) -> bool:
    return "Conv1D" in tensors.classes_of(name.removesuffix(".weight"))


def _keep(weight: Tensor) -> Tensor:
    return weight


def _turn(weight: Tensor) -> Tensor:
    """transformers quantizes its `Conv1D`, which stores (in, out), as a linear layer, which stores (out, in)."""
    return weight.T


def _turned(shape: tuple[int, ...], transposed: bool) -> tuple[int, ...]:
    return shape[::-1] if transposed else shape


def _linear(module: nn.Module) -> Iterator[Piece]:
    """Weight (out, in), also of what was a `Conv1D`: transformers notes the class that it replaced."""
    replaced = getattr(module, "source_cls", None)
    is_conv1d = isinstance(replaced, type) and any(cls.__name__ == "Conv1D" for cls in replaced.__mro__)
    yield Piece("weight", "transformers_conv1d" if is_conv1d else "linear")


FORMAT = Format(
    "bitsandbytes",
    stored_weights,
    methods=(_PACKAGE,),
    check_complete=check_complete,
    live_weight=live_weight,
    layers={
        "bitsandbytes.nn.modules.Linear8bitLt": _linear,
        "bitsandbytes.nn.modules.Linear4bit": _linear,
    },
)

"""compressed-tensors: what llm-compressor writes, in the many formats that its config's groups name.

A weight is stored under its module as `weight` or `weight_packed`, with `weight_scale` and what else its format needs.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.model.peft_layers import AGAIN
from hf_mhe.neurons.model.weight import Weight
from hf_mhe.neurons.quantized.format import Format
from hf_mhe.neurons.quantized.live import quantized_weight
from hf_mhe.neurons.quantized.stored import PLAIN_DTYPES, Packed, Tensors, Unread, needs
from hf_mhe.neurons.source import Get
from hf_mhe.text import one_line

_METHOD = "compressed-tensors"
_PACKAGE = "compressed_tensors"
_AT_LEAST = "0.15"
_VALUES = (".weight_packed", ".weight")


def live_weight(module: nn.Module, attribute: str) -> Weight | None:
    """The weight of a linear layer or an embedding whose status is "compressed"; others hold theirs as it is."""
    scheme = getattr(module, "quantization_scheme", None)
    if attribute != "weight" or scheme is None or not _is_compressed(module):
        return None
    shape = _shape_of(module)
    if shape is None:
        return None
    names = tuple(name for name in (*module._parameters, *module._buffers) if name.startswith("weight"))
    form = f"{_METHOD} ({getattr(scheme.format, 'value', scheme.format)})"

    def check() -> None:
        if not _is_compressed(module):
            raise MHEError(
                "compressed-tensors has decompressed it since, as it does in a first forward pass; " + AGAIN
            )

    return quantized_weight(names, shape, torch.float32, form, lambda t: _decompress(dict(t), scheme), check)


def _is_compressed(module: nn.Module) -> bool:
    status = getattr(module, "quantization_status", None)
    return getattr(status, "value", status) == "compressed"


def _shape_of(module: Any) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return None


def _decompress(state: dict[str, Tensor], scheme: Any) -> Tensor:
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(getattr(scheme.format, "value", scheme.format))
    made: Tensor = compressor.decompress(state, scheme)["weight"]
    return made


def stored_weights(tensors: Tensors) -> Iterator[Packed | Unread]:
    """The weights of a checkpoint whose config names compressed-tensors."""
    if tensors.method != _METHOD:
        return
    lacking = needs(_PACKAGE, _METHOD, _AT_LEAST)
    groups = _groups(tensors.config) if lacking is None else []
    for values in tensors.shapes:
        ending = next((ending for ending in _VALUES if values.endswith(ending)), None)
        if ending is None:
            continue
        module = values.removesuffix(ending)
        names = (values, *(name for name in _companions(module) if name in tensors.shapes))
        if ending == ".weight" and (len(names) == 1 or f"{module}.weight_packed" in tensors.shapes):
            continue
        name = f"{module}.weight"
        if lacking is not None:
            yield Unread(names, f"quantized by {_METHOD}: {lacking}")
        else:
            yield _stored(tensors, module, name, names, groups)


def check_complete(tensors: Tensors, taken: Container[str]) -> None:
    """Refuse values without their scales.

    Raises:
        MHEError: names the weight and the tensor that is missing.
    """
    if tensors.method != _METHOD:
        return
    for name, shape in tensors.shapes.items():
        module = name.rpartition(".")[0]
        codes = name.endswith(".weight") and len(shape) == 2 and tensors.dtype(name) not in (None, *PLAIN_DTYPES)
        if (codes or name.endswith(".weight_packed")) and f"{module}.weight_scale" not in tensors.shapes:
            tensors.missing(name, f"{module}.weight_scale", _METHOD)


def _companions(module: str) -> list[str]:
    endings = ("scale", "global_scale", "zero_point", "shape", "g_idx")
    return [f"{module}.weight_{ending}" for ending in endings]


def _groups(config: Mapping[str, Any]) -> list[Any]:
    """The config's groups that have weights, each a scheme with its format filled in.

    Raises:
        MHEError: compressed-tensors does not accept the config.
    """
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig

    known = {key: value for key, value in config.items() if key in QuantizationConfig.model_fields}
    try:
        parsed = QuantizationConfig.model_validate(known)
        groups = [scheme for scheme in parsed.config_groups.values() if scheme.weights is not None]
        for scheme in groups:
            whole = parsed.format if parsed.format not in ("mixed-precision", "fakequant") else None
            scheme.format = scheme.format or whole or infer_module_format(nn.Linear, scheme)
    except (ValueError, NotImplementedError, StopIteration) as error:
        said = one_line(error)
        raise MHEError(f"config.json: compressed-tensors does not accept quantization_config: {said}") from error
    return groups


def _stored(tensors: Tensors, module: str, name: str, names: tuple[str, ...], groups: list[Any]) -> Packed | Unread:
    scheme = _scheme(tensors, module, groups)
    if scheme is None:
        return Unread(names, f"quantized by {_METHOD}: no group of the config targets {module}")
    form = f"{_METHOD} ({getattr(scheme.format, 'value', scheme.format)})"
    if f"{module}.weight_g_idx" in names:
        return Unread(names, f"quantized by {form}: columns in another order (weight_g_idx) are not read")

    def dequantize(get: Get) -> Tensor:
        return _decompress({tensor.removeprefix(f"{module}."): get(tensor) for tensor in names}, scheme)

    return Packed(name, names, _shape(tensors, module, names, scheme, form), form, dequantize)


def _scheme(tensors: Tensors, module: str, groups: list[Any]) -> Any:
    """The group that a module is in: its name comes before patterns, and they before its class, as in the library.

    Experts that a checkpoint stores one by one are linear layers there, whatever the model makes of them.
    """
    from compressed_tensors.utils.match import match_name

    schemes = {target: scheme for scheme in groups for target in scheme.targets}
    named = (target for target in sorted(schemes, key=lambda t: ("re:" in t, t)) if match_name(module, target))
    by_class = (name for name in tensors.classes_of(module) or ("Linear",) if name in schemes)
    target = next(named, None) or next(by_class, None)
    return None if target is None else schemes[target]


def _shape(tensors: Tensors, module: str, names: tuple[str, ...], scheme: Any, form: str) -> tuple[int, ...]:
    """The weight's own shape, as its format stores it or as its values show it.

    Raises:
        MHEError: the shape is not known, or the values or the scales do not fit it.
    """
    values, stored = names[0], tensors.shapes[names[0]]
    bits, shape = int(scheme.weights.num_bits), stored
    if f"{module}.weight_shape" in names:
        shape = tuple(int(length) for length in tensors.read(f"{module}.weight_shape").tolist())
        words = (*shape[:-1], -(-shape[-1] * bits // 32))
        tensors.expect(values, words, f"{bits}-bit values of a weight {shape} in words of 32 bits")
    elif values.endswith(".weight_packed"):
        if bits not in (4, 8) or tensors.dtype(values) not in (None, "U8", "I8"):
            raise MHEError(
                f"tensor {values!r} of shape {stored} stores {bits}-bit values, and {module}.weight_shape, which "
                "gives the weight's shape, is not in the checkpoint"
            )
        shape = (*stored[:-1], stored[-1] * 8 // bits)
    grid = tensors.shape(f"{module}.weight_scale", values, form)
    _check_grid(f"{module}.weight_scale", grid, shape, scheme)
    if f"{module}.weight_global_scale" in names:
        tensors.expect_count(f"{module}.weight_global_scale", 1, f"one scale for all scales of a weight {shape}")
    return shape


def _check_grid(name: str, grid: tuple[int, ...], shape: tuple[int, ...], scheme: Any) -> None:
    """Refuse scales that do not fit: one for the tensor, for each row, for each group in a row, or for each block."""
    args = scheme.weights
    rows, columns = shape[-2:]
    strategy = str(getattr(args.strategy, "value", args.strategy))
    height, width = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, args.group_size or columns),
        "tensor_group": (1, args.group_size or columns),
        "block": tuple(args.block_structure or (rows, columns)),
    }.get(strategy, (0, 0))
    if height and torch.Size(grid).numel() != -(-rows // height) * -(-columns // width):
        expected = (-(-rows // height), -(-columns // width))
        raise MHEError(f"tensor {name!r} has shape {grid}, expected {expected}: {strategy} scales of a weight {shape}")


FORMAT = Format(_METHOD, stored_weights, (_METHOD,), check_complete, live_weight)

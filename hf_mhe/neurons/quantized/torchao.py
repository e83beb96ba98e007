"""torchao: weights that are tensor subclasses, with integer or float8 values and their scales inside.

A checkpoint of transformers holds a subclass's tensors one by one (`q_proj._weight_qdata`, `q_proj._weight_scale`) and
says in the files' metadata how they go together.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.json_files import parse_json
from hf_mhe.neurons.model.storage import in_own_precision
from hf_mhe.neurons.model.weight import Weight
from hf_mhe.neurons.quantized.format import Format
from hf_mhe.neurons.quantized.live import of_class, own_parameter, quantized_weight, unreadable
from hf_mhe.neurons.quantized.stored import TORCH_DTYPES, Packed, Tensors, Unread, needs
from hf_mhe.neurons.source import Get
from hf_mhe.text import one_line

_PACKAGE = "torchao"


def live_weight(module: nn.Module, attribute: str) -> Weight | None:
    """A parameter that is one of torchao's tensor subclasses."""
    parameter = own_parameter(module, attribute)
    if not of_class(parameter, _PACKAGE, "TorchAOBaseTensor") or in_own_precision(parameter):
        return None
    form = f"{_PACKAGE} ({type(parameter).__name__})"
    if not _can_dequantize(parameter) and (why := _refuses_products(parameter)) is not None:
        return unreadable((attribute,), form, why)
    return quantized_weight(
        (attribute,), tuple(parameter.shape), parameter.dtype, form, lambda t: _dequantize(t[attribute])
    )


def _can_dequantize(weight: Tensor) -> bool:
    """Whether a subclass has a method for it; the one that all tensors have is for torch's own quantized dtypes."""
    return type(weight).dequantize is not Tensor.dequantize


def _refuses_products(weight: Tensor) -> str | None:
    """Why a subclass that no method dequantizes cannot be read by what it computes either."""
    if weight.ndim != 2:
        return f"torchao cannot dequantize {weight.ndim} dimensions of it"
    try:
        with torch.no_grad():
            _products(weight, rows=1)
    except (RuntimeError, NotImplementedError, AssertionError, ImportError, AttributeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"torchao has no method that dequantizes it, and no kernel for it on {weight.device.type}: {said}"
    return None


def _dequantize(weight: Any) -> Tensor:
    if not _can_dequantize(weight):
        return _products(weight, rows=weight.shape[1])
    made: Tensor = weight.dequantize()
    scale = getattr(weight, "act_pre_scale", None)  # of the inputs, before they meet the weight: AWQ, SmoothQuant
    return made if scale is None else made * scale


def _products(weight: Tensor, rows: int) -> Tensor:
    """The weight's columns, as the layer makes them of unit vectors: the packed layouts are known to a kernel only."""
    inputs = torch.eye(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return nn.functional.linear(inputs, weight).T


def stored_weights(tensors: Tensors) -> Iterator[Packed | Unread]:
    """The weights of a checkpoint that torchao quantized, as the metadata lists them.

    The metadata has the names of the model, its tensors those that transformers saves: of a model whose weights are
    renamed while loading, these are not the same.
    """
    renamed: dict[str, str] | None = None
    for name in _names(tensors):
        described = _described(tensors, name)
        kind = described.get("_type")
        if kind in (None, "Tensor"):
            continue
        inside = sorted(described.get("_tensor_data_names") or [], key=lambda part: part != "qdata")
        stored = name
        if not any(_part(name, part) in tensors.shapes for part in inside):
            renamed = _stored_names(tensors) if renamed is None else renamed
            stored = renamed.get(name, name)
        form = f"{_PACKAGE} ({kind})"
        for part in inside:
            tensors.shape(_part(stored, part), stored, form)
        yield _stored(tensors, name, stored, form, {part: _part(stored, part) for part in inside})


def _part(name: str, part: str) -> str:
    """What one of a weight's tensors is called: those of `q_proj.weight` are `q_proj._weight_qdata` and so on."""
    module, dot, attribute = name.rpartition(".")
    return f"{module}{dot}_{attribute}_{part}"


def _stored_names(tensors: Tensors) -> dict[str, str]:
    """The stored name of each weight, by the name that it has in the model."""
    found: dict[str, str] = {}
    for tensor in tensors.shapes:
        module, dot, attribute = tensor.rpartition(".")
        if attribute.startswith("_") and attribute.endswith("_qdata"):
            stored = f"{module}{dot}{attribute[1:].removesuffix('_qdata')}"
            found[tensors.loaded_as(stored)] = stored
    return found


def check_complete(tensors: Tensors, taken: Container[str]) -> None:
    """Refuse values of which the metadata does not say how they are made.

    Raises:
        MHEError: names the tensor.
    """
    for name in tensors.shapes if tensors.method == _PACKAGE else ():
        if name.endswith("_qdata") and name not in taken:
            raise MHEError(
                f"tensor {name!r} is quantized by torchao, and the metadata of its file does not say how: "
                "save the model again with save_pretrained"
            )


def _stored(tensors: Tensors, name: str, stored: str, form: str, parts: Mapping[str, str]) -> Packed | Unread:
    names = tuple(parts.values())
    if (lacking := needs(_PACKAGE, at_least="0.15")) is not None:
        return Unread(names, f"quantized by {form}: {lacking}")
    blank = {
        part: torch.empty(tensors.shapes[tensor], dtype=TORCH_DTYPES[tensors.dtypes[tensor]], device="meta")
        for part, tensor in parts.items()
        if tensors.dtype(tensor) in TORCH_DTYPES
    }
    if len(blank) < len(parts):
        return Unread(names, f"quantized by {form}: of a dtype that is not read")
    outline = _built(tensors, name, blank, names)
    if not _can_dequantize(outline):
        why = "torchao dequantizes it on its own kernel's device only: load it there and analyze the module"
        return Unread(names, f"quantized by {form}: {why}")
    block = getattr(outline, "block_size", None)
    if block is not None and len(block) == outline.ndim:
        grid = torch.Size(-(-length // size) for length, size in zip(outline.shape, block, strict=True))
        for part in ("scale", "zero_point"):
            if part in parts:
                tensors.expect_count(parts[part], grid.numel(), f"one for each block {tuple(block)} of {stored}")

    def dequantize(get: Get) -> Tensor:
        return _dequantize(_built(tensors, name, {part: get(tensor) for part, tensor in parts.items()}, names))

    return Packed(stored, names, tuple(outline.shape), form, dequantize)


def _built(tensors: Tensors, name: str, parts: Mapping[str, Tensor], names: tuple[str, ...]) -> Any:
    """The tensor subclass, from its tensors, as torchao builds it."""
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    described = {name: tensors.metadata[name], "tensor_names": json.dumps([name])}
    try:
        built, _ = unflatten_tensor_state_dict({_part(name, part): t for part, t in parts.items()}, described)
    except (ValueError, TypeError, AssertionError) as error:
        said = one_line(error)
        raise MHEError(f"torchao cannot build {name} from {', '.join(names)}: {said}") from error
    return built[name]


def _names(tensors: Tensors) -> list[str]:
    """The names of all weights that torchao's metadata lists or describes; none where there is no such metadata.

    The list is that of one file; of a checkpoint in several, each may have its own.
    """
    listed = _parsed(tensors.metadata.get("tensor_names", ""))
    described = [name for name, text in tensors.metadata.items() if "_tensor_data_names" in text]
    return list(dict.fromkeys([*map(str, listed if isinstance(listed, list) else ()), *described]))


def _parsed(text: str) -> Any:
    try:
        return parse_json(text, "torchao's metadata")
    except MHEError:
        return None


def _described(tensors: Tensors, name: str) -> dict[str, Any]:
    """What the metadata says of one weight.

    Raises:
        MHEError: it lists the weight, and says nothing of it or no JSON object.
    """
    if name not in tensors.metadata:
        raise MHEError(f"torchao's metadata lists {name!r} and does not say how it is made")
    described = _parsed(tensors.metadata[name])
    if not isinstance(described, dict):
        raise MHEError(f"torchao's metadata says {tensors.metadata[name]!r:.80} of {name!r}, not how it is made")
    return described


FORMAT = Format("torchao", stored_weights, (_PACKAGE,), check_complete, live_weight)

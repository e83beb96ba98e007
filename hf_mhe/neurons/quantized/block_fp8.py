"""Float8 values with a float32 scale for each block, as DeepSeek-V3 and transformers' fine-grained FP8 store them.

Source: DeepSeek-AI, "DeepSeek-V3 Technical Report", arXiv:2412.19437, section 3.3; `weight_scale_inv` is what a value
is multiplied by.

Note [Blocks that do not fill]. Blocks are counted from the first row and column, so the last of a row or column may be
cut short, as in DeepSeek's own kernel. The block's size is taken from the config. Rejected: rows divided by rows of
scales, which makes equal blocks of 96 out of 192 rows with a block of 128.

Note [Fused gate and up]. Where transformers stacks experts it concatenates the scales of the gate and of the up
projection, so each half of the rows has blocks of its own.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.model.weight import Weight
from hf_mhe.neurons.quantized.format import Format
from hf_mhe.neurons.quantized.live import own_parameter, quantized_weight
from hf_mhe.neurons.quantized.stored import Packed, Tensors, Unread

_FORM = "block-scaled FP8"
_METHOD = "fp8"
_SUFFIX = "_scale_inv"
# Other names for the scales of `weight`, as transformers renames them while loading.
_OTHER_NAMES = (".scale", ".qscale_weight")
_USUAL_BLOCK = (128, 128)
# Two-valued bytes of E2M1, which DeepSeek-V4 stores its experts in under the same names.
_FP4_DTYPES = ("I8", "U8", "F4")


def live_weight(module: nn.Module, attribute: str) -> Weight | None:
    """The weight of transformers' `FP8Linear` and `FP8Experts`: float8, with `<name>_scale_inv` beside it."""
    values, scales = own_parameter(module, attribute), own_parameter(module, f"{attribute}{_SUFFIX}")
    if values is None or scales is None or values.element_size() != 1 or not values.is_floating_point():
        return None
    block = getattr(module, "block_size", None)
    names = (attribute, f"{attribute}{_SUFFIX}")
    return quantized_weight(
        names, tuple(values.shape), torch.float32, _FORM, lambda t: dequantize(t[names[0]], t[names[1]], block)
    )


def stored_weights(tensors: Tensors) -> Iterator[Packed | Unread]:
    """The float8 weights of a checkpoint, with the scales beside them."""
    for name in tensors.shapes:
        scales = _scales_of(tensors, name)
        if scales is not None:
            yield _stored(tensors, name, scales)


def check_complete(tensors: Tensors, taken: Container[str]) -> None:
    """Refuse float8 values without scales, where the config says that they have some.

    Raises:
        MHEError: names the weight and the tensor that is missing.
    """
    if tensors.method != _METHOD:
        return
    for name, shape in tensors.shapes.items():
        if name not in taken and len(shape) >= 2 and (tensors.dtype(name) or "").startswith("F8"):
            tensors.missing(name, f"{name}{_SUFFIX}", _FORM)


def _scales_of(tensors: Tensors, name: str) -> str | None:
    """The name of a weight's scales, None for a tensor that is no float8 weight or has none."""
    dtype = tensors.dtype(name)
    packed = tensors.method == _METHOD and dtype in (None, *_FP4_DTYPES)
    if len(tensors.shapes[name]) < 2 or not (packed or (dtype or "").startswith("F8")):
        return None
    if f"{name}{_SUFFIX}" in tensors.shapes:
        return f"{name}{_SUFFIX}"
    if tensors.method == _METHOD and name.endswith(".weight"):
        others = (name.removesuffix(".weight") + other for other in _OTHER_NAMES)
        return next((other for other in others if other in tensors.shapes), None)
    return None


def _stored(tensors: Tensors, name: str, scales: str) -> Packed | Unread:
    shape, grid = tensors.shapes[name], tensors.shapes[scales]
    if tensors.dtype(name) in _FP4_DTYPES:
        return Unread((name, scales), "4-bit values with block scales: load it with transformers and analyze that")
    block = _block(tensors)
    if grid not in _grids(shape, block):
        expected = " or ".join(map(str, dict.fromkeys(_grids(shape, block))))
        raise MHEError(
            f"tensor {scales!r} has shape {grid}, expected {expected}: one scale for each block of "
            f"{block or 'the whole tensor'} in {name} {shape}"
        )
    activations = f"{name.removesuffix('.weight')}.activation_scale"
    names = (name, scales, *((activations,) if activations in tensors.shapes else ()))
    return Packed(name, names, shape, _FORM, lambda get: dequantize(get(name), get(scales), block))


def _block(tensors: Tensors) -> tuple[int, int] | None:
    """The block's size: None for one scale for a whole matrix, which a config says with a null."""
    size: Any = tensors.config.get("weight_block_size", _USUAL_BLOCK)
    if size is None:
        return None
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise MHEError(f"config.json: weight_block_size is {size!r}; it must be two positive numbers (rows, columns)")
    return size[0], size[1]


def _grids(shape: tuple[int, ...], block: tuple[int, int] | None) -> list[tuple[int, ...]]:
    """The shapes that scales for values of a shape can have: blocks over all rows, or over each half of them."""
    *leading, rows, columns = shape
    height, width = block or (rows, columns)
    across = -(-columns // width)
    grids = [(*leading, -(-rows // height), across)]
    if leading and rows % 2 == 0:  # Note [Fused gate and up]
        grids.append((*leading, 2 * -(-rows // 2 // height), across))
    return [*grids, (), (1,)] if block is None else grids


def dequantize(values: Tensor, scales: Tensor, block: Sequence[int] | None) -> Tensor:
    """Values (..., rows, columns) times the scale of their block, in float32.

    `scales` is (..., blocks of rows, blocks of columns), or a single number; without a `block` a whole matrix is one.
    Scales in uint8 are the exponents of powers of two, as in E8M0.
    """
    numbers = scales.float()
    if scales.dtype == torch.uint8:
        numbers = torch.exp2(numbers - 127)
    if numbers.numel() == 1:
        return values.float() * numbers.reshape(())
    rows, columns = values.shape[-2:]
    height, width = block or (rows, columns)
    halves = 1 if numbers.shape[-2] == -(-rows // height) else 2
    # Note [Fused gate and up]
    down = torch.arange(rows // halves, device=numbers.device) // height
    down = torch.cat([down + half * (numbers.shape[-2] // halves) for half in range(halves)])
    across = torch.arange(columns, device=numbers.device) // width
    made = values.float()
    # Row by row of blocks, so that the expanded scales never take the weight's own size in memory.
    for row in range(numbers.shape[-2]):
        of_row = (down == row).nonzero().flatten()
        if len(of_row):
            first, last = int(of_row[0]), int(of_row[-1]) + 1
            made[..., first:last, :] *= numbers[..., row : row + 1, :].index_select(-1, across)
    return made


FORMAT = Format(_FORM, stored_weights, (_METHOD,), check_complete, live_weight)

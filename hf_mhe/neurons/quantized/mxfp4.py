"""MXFP4: 4-bit values, two to a byte, with one power of two for each 32 of them; GPT-OSS stores its experts so.

Source: Open Compute Project, "OCP Microscaling Formats (MX) Specification v1.0", 2023. `<name>_blocks` is (experts,
out, blocks, 16), `<name>_scales` (experts, out, blocks); the weight that transformers makes of them is (experts, in,
out).
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.quantized.format import Format
from hf_mhe.neurons.quantized.stored import Packed, Tensors, Unread
from hf_mhe.neurons.source import Get

_FORM = "MXFP4"
_METHOD = "mxfp4"
_NAN = 255
# transformers unpacks 32 million blocks at once, by int32 indices that take sixteen times the bytes of the values.
_BLOCKS_AT_ONCE = 2**18


def in_a_kernels_order(module: nn.Module) -> dict[str, str]:
    """The stacks that transformers keeps for a kernel, parameters or not, with the reason why they are not read."""
    if type(module).__name__ != "Mxfp4GptOssExperts":
        return {}
    why = "in a kernel's own order: analyze the checkpoint, or load it with Mxfp4Config(dequantize=True)"
    return dict.fromkeys(("gate_up_proj", "down_proj"), f"quantized by {_FORM}: {why}")


def stored_weights(tensors: Tensors) -> Iterator[Packed | Unread]:
    """The stacks of experts of a checkpoint."""
    for name, shape in tensors.shapes.items():
        blocks = name.endswith("_blocks") and len(shape) == 4 and tensors.dtype(name) in (None, "U8")
        if blocks and (_said(tensors) or f"{name.removesuffix('_blocks')}_scales" in tensors.shapes):
            yield _stored(tensors, name)


def _said(tensors: Tensors) -> bool:
    return tensors.method == _METHOD


def check_complete(tensors: Tensors, taken: Container[str]) -> None:
    """Refuse scales without their blocks, where the config says that they belong to some.

    Raises:
        MHEError: names the tensor that is missing.
    """
    for name in tensors.shapes if _said(tensors) else ():
        if name.endswith("_scales") and name not in taken:
            tensors.shape(f"{name.removesuffix('_scales')}_blocks", name, _FORM)


def _stored(tensors: Tensors, blocks: str) -> Packed:
    name = blocks.removesuffix("_blocks")
    scales = f"{name}_scales"
    experts, rows, groups, per_block = tensors.shapes[blocks]
    tensors.shape(scales, blocks, _FORM)
    tensors.expect(scales, (experts, rows, groups), f"one scale for each block of {blocks} {tensors.shapes[blocks]}")
    shape = (experts, groups * per_block * 2, rows)
    return Packed(name, (blocks, scales), shape, _FORM, lambda get: _dequantize(get, blocks, scales))


def _dequantize(get: Get, blocks: str, scales: str) -> Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    exponents = get(scales).view(torch.uint8)
    broken = (exponents == _NAN).nonzero()
    if len(broken):
        raise MHEError(
            f"tensor {scales!r} of shape {tuple(exponents.shape)} has {len(broken)} NaN value(s), the first at "
            f"{broken[0].tolist()}: as the exponent of a block, {_NAN} is no number"
        )
    # bfloat16 holds every 4-bit value times every power of two of this format: nothing is rounded.
    made: Tensor = convert_moe_packed_tensors(get(blocks), exponents, rows_per_chunk=_BLOCKS_AT_ONCE)
    return made


FORMAT = Format(_FORM, stored_weights, (_METHOD,), check_complete, unread=in_a_kernels_order)

"""Formats that are not read, by the name that a config gives them: what they are called, and which package owns them.

Nothing is guessed from such tensors. Each is listed as skipped, with the package to load the model with.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from hf_mhe.neurons.quantized.format import Format
from hf_mhe.neurons.quantized.stored import PLAIN_DTYPES, Packed, Tensors, Unread, needs
from hf_mhe.neurons.reasons import dtype_refusal

# quant_method -> what the format is called, the package to import, and the name to install it by. An entry of a format
# that is read by now speaks of those of its tensors that are not.
_OWNERS = {
    "aqlm": ("AQLM", "aqlm", "aqlm[gpu,cpu]"),
    "auto-round": ("AutoRound", "auto_round", "auto-round"),
    "awq": ("AWQ", "gptqmodel", "gptqmodel"),
    "bitnet": ("BitNet", "transformers", "transformers"),
    "eetq": ("EETQ", "eetq", "eetq"),
    "fbgemm-fp8": ("FBGEMM FP8", "fbgemm_gpu", "fbgemm-gpu"),
    "fp-quant": ("FP-Quant", "fp_quant", "fp-quant"),
    "gptq": ("GPTQ", "gptqmodel", "gptqmodel"),
    "higgs": ("HIGGS", "flute", "flute-kernel"),
    "hqq": ("HQQ", "hqq", "hqq"),
    "modelopt": ("ModelOpt", "modelopt", "nvidia-modelopt"),
    "quanto": ("Quanto", "optimum.quanto", "optimum-quanto"),
    "quark": ("Quark", "quark", "amd-quark"),
    "spqr": ("SpQR", "spqr_quant", "spqr_quant"),
    "vptq": ("VPTQ", "vptq", "vptq"),
}
# Dtypes that no format packs values into: positions, masks, sizes.
_COUNTS = ("I64", "U64", "BOOL")
_CODE_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32)
# What the tensors beside quantized values are called; a bias is none of them.
_BESIDE = ("scale", "zero", "g_idx", "absmax", "quant_map", "codebook", "codes", "meta")


def stored_weights(tensors: Tensors) -> Iterator[Packed | Unread]:
    """Whatever no format has taken: tensors of codes, and the scales beside them in the same module."""
    coded = {
        name
        for name, shape in tensors.shapes.items()
        if tensors.dtype(name) not in (None, *PLAIN_DTYPES) and (len(shape) >= 2 or "weight" in name)
    }
    modules = {name.rpartition(".")[0] for name in coded}
    for name, shape in tensors.shapes.items():
        module, _, attribute = name.rpartition(".")
        beside = module in modules and any(word in attribute for word in _BESIDE)
        if len(shape) >= 2 and (name in coded or beside):
            weights = tensors.dtype(name) not in _COUNTS and tensors.role(name) != "buffer"
            yield Unread((name,), _reason(tensors, name), bool(tensors.method) and weights, weights)


def codes_in_buffers(module: nn.Module) -> dict[str, str]:
    """Integer weights that a layer holds as buffers (GPTQ, AWQ, EETQ), with the reason why they are not read."""
    found: dict[str, str] = {}
    for name, buffer in module._buffers.items():
        if buffer is None or buffer.ndim < 2 or "weight" not in name or buffer.dtype not in _CODE_DTYPES:
            continue
        what = f"{str(buffer.dtype).removeprefix('torch.')} codes of {type(module).__name__}"
        found[name] = f"{what}: its format is not read: analyze the model that its package dequantizes"
    return found


def _reason(tensors: Tensors, name: str) -> str:
    owner = _OWNERS.get(tensors.method)
    if tensors.dtype(name) == "C64":
        return dtype_refusal("C64")
    if tensors.dtype(name) in _COUNTS:
        return f"dtype {tensors.dtype(name)}: positions, counts or flags, no weights"
    if owner is not None:
        form, package, distribution = owner
        lacking = needs(package.partition(".")[0], distribution)
        return f"quantized by {form}: {lacking or f'load it with {distribution} and analyze what that dequantizes'}"
    if tensors.method:
        return f"quantized by {tensors.method}: how its values become weights is not known"
    if tensors.dtype(name) in PLAIN_DTYPES:
        return "scales of the quantized values beside it: no weights by themselves"
    return f"dtype {tensors.dtype(name)}: quantized or integer values are not weights without their scales"


FORMAT = Format("not read", stored_weights, unread=codes_in_buffers, left_over=True)

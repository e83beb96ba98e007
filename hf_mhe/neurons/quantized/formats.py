"""The formats, in the order in which they are asked. A new format is a file of its own and one entry here."""

from __future__ import annotations

from torch import nn

from hf_mhe.neurons.checkpoint import stored_parts
from hf_mhe.neurons.kinds.registry import Reader
from hf_mhe.neurons.model.weight import Weight
from hf_mhe.neurons.quantized import bitsandbytes, block_fp8, cast_float8, compressed, mxfp4, packages, torchao
from hf_mhe.neurons.quantized.format import Format

FORMATS: tuple[Format, ...] = (
    bitsandbytes.FORMAT,
    torchao.FORMAT,
    block_fp8.FORMAT,
    mxfp4.FORMAT,
    compressed.FORMAT,
    stored_parts.FORMAT,
    cast_float8.FORMAT,
    packages.FORMAT,
)

READ_METHODS = tuple(method for each in FORMATS for method in each.methods)
"""What configs call the methods whose tensors are read; those of others are known by nothing but their dtypes."""

LAYERS: dict[str, Reader] = {name: reader for each in FORMATS for name, reader in each.layers.items()}
"""Readers of the formats' own layers, by the qualified names of their classes."""


def quantized_live_weight(module: nn.Module, attribute: str) -> Weight | None:
    """The weight of the first format that a module stores under a name; None where it is plain or not there."""
    for each in FORMATS:
        if each.live_weight is not None and (found := each.live_weight(module, attribute)) is not None:
            return found
    return None


def unread_live(module: nn.Module) -> dict[str, str]:
    """The tensors of a module that a format stores and that cannot be read, by attribute, each with the reason."""
    return {name: reason for each in FORMATS for name, reason in each.unread(module).items()}

"""What is known of a checkpoint before any weight is read, and the weights that its formats make of its tensors."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from packaging.version import Version
from torch import Tensor

from hf_mhe.errors import MHEError
from hf_mhe.json_files import parse_json_object
from hf_mhe.neurons.source import Get
from hf_mhe.safetensors_dtypes import SAFETENSORS_DTYPES

PLAIN_DTYPES = tuple(name for name, dtype in SAFETENSORS_DTYPES.items() if dtype.plain)
"""The dtypes, as a safetensors header spells them, whose values are numbers as they stand."""

TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype.torch) for name, dtype in SAFETENSORS_DTYPES.items() if dtype.torch is not None
}
"""torch's dtypes for those of a safetensors header."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight that a checkpoint stores quantized: `tensor_names` are its tensors, the values first.

    `shape` is the weight's own, `form` what its format is called; `dequantize` makes the weight, reading by name.
    `quantized` is False where these are numbers as they stand, such as a weight and the mask that prunes it.
    """

    name: str
    tensor_names: tuple[str, ...]
    shape: tuple[int, ...]
    form: str
    dequantize: Callable[[Get], Tensor]
    quantized: bool = True


@dataclass(frozen=True)
class Unread:
    """Tensors that cannot be read as a weight, with the reason; `quantized` where they were one once.

    `weights` is False where there is no weight to see in them: positions, flags, masks.
    """

    tensor_names: tuple[str, ...]
    reason: str
    quantized: bool = True
    weights: bool = True


@dataclass(frozen=True, eq=False)
class Tensors:
    """A checkpoint's tensors by name: shapes, dtypes as safetensors spells them (none: not known), and what it says.

    `config` is the config's `quantization_config`, `metadata` that of the files' headers, and `get` reads a tensor
    (None: nothing can be read yet). `classes_of` names the class of a module and its bases, by its dotted name;
    `loaded_as` says what a stored tensor is called in the model that loads it, and `role` whether it is a "parameter"
    or a "buffer" there, "" where the model does not take it or is not known.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    get: Get | None = None
    classes_of: Callable[[str], tuple[str, ...]] = lambda module: ()
    loaded_as: Callable[[str], str] = lambda name: name
    role: Callable[[str], str] = lambda name: ""

    @property
    def method(self) -> str:
        """The config's name for the quantization, "" where it names none."""
        return str(self.config.get("quant_method") or "").lower().replace("_", "-")

    def dtype(self, name: str) -> str | None:
        """A tensor's dtype, None where it is not known."""
        return self.dtypes.get(name)

    def shape(self, name: str, of: str, form: str) -> tuple[int, ...]:
        """The shape of a tensor that has to be there because `of` is.

        Raises:
            MHEError: names the tensor that is missing.
        """
        if name not in self.shapes:
            self.missing(of, name, form)
        return self.shapes[name]

    def missing(self, weight: str, name: str, form: str) -> NoReturn:
        """Refuse a checkpoint that lacks a tensor.

        Raises:
            MHEError: always; names both tensors.
        """
        raise MHEError(
            f"tensor {weight!r} is quantized by {form}, and the checkpoint does not hold {name!r}, without which its "
            "values are no weights: the checkpoint is incomplete"
        )

    def expect(self, name: str, shape: tuple[int, ...], why: str) -> None:
        """Refuse scales that do not fit the values.

        Raises:
            MHEError: names the tensor, its shape and the right one.
        """
        if self.shapes[name] != shape:
            raise MHEError(f"tensor {name!r} has shape {self.shapes[name]}, expected {shape}: {why}")

    def expect_count(self, name: str, count: int, why: str) -> None:
        """Refuse scales of which there are too few or too many, whatever their shape.

        Raises:
            MHEError: names the tensor, its shape and the right number.
        """
        if torch.Size(self.shapes[name]).numel() != count:
            raise MHEError(f"tensor {name!r} has shape {self.shapes[name]}, expected {count} values: {why}")

    def read(self, name: str) -> Tensor:
        """A small tensor that the shapes of others depend on.

        Raises:
            MHEError: this checkpoint cannot be read yet.
        """
        if self.get is None:
            raise MHEError(f"the shapes of quantized weights are in {name!r}: give checkpoint_groups `get` to read it")
        return self.get(name)

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object that a tensor of bytes spells.

        Raises:
            MHEError: the bytes are no JSON object.
        """
        values = self.read(name)
        text = bytes(values.to(torch.uint8).flatten().tolist())
        try:
            return parse_json_object(text, "its text")
        except MHEError as error:
            raise MHEError(f"tensor {name!r} should spell JSON, an object: {error}") from error


def needs(package: str, distribution: str | None = None, at_least: str | None = None) -> str | None:
    """What to install to read a format, None where its package is there, and new enough."""
    name = distribution or package
    if importlib.util.find_spec(package) is None:
        return f"reading it needs {name}, which is not installed: pip install {name}"
    if at_least is not None and Version(installed := importlib.metadata.version(name)) < Version(at_least):
        return f"reading it needs {name} {at_least} or newer, and {installed} is installed: pip install -U {name}"
    return None

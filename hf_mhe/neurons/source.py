"""Where the weight of a group comes from: the parameters of a live module, or the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from hf_mhe.neurons.model.still_bound import Binding

Get = Callable[[str], Tensor]
"""Reads a tensor of a checkpoint by its name."""


class Stored(Protocol):
    """A tensor made from one or more tensors that are read by name.

    `make` makes it, alone or together with others, and `pick` takes it out of what was made; what has an equal `key`
    is made by the same `make`.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def key(self) -> Hashable: ...

    def make(self, get: Get) -> Any: ...

    def pick(self, made: Any) -> Tensor: ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor read by one name, as it is."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def key(self) -> Hashable:
        return self.name

    def make(self, get: Get) -> Tensor:
        return get(self.name)

    def pick(self, made: Tensor) -> Tensor:
        return made


@dataclass(frozen=True)
class Source:
    """Where a group's weight comes from: the tensors that it is made of, by name, and how they combine.

    `root` is the live model, or None for a checkpoint; `module_path` the real dotted path of the module in it, and
    `tensor_names` are the tensors' paths in the module. `shapes` are their shapes when the group was made, `stored`
    says for each how it is read by name. `check` raises where the module no longer computes with that weight. `fixed`
    names those that store a quantized weight. `binding` is what the module of a live model was when the group was
    made. `reading` makes, of what reads a checkpoint by its own names, what reads the plain tensors that `stored`
    names; None where they are the same.
    """

    root: nn.Module | None
    module_path: str
    tensor_names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    combine: Callable[[Mapping[str, Tensor]], Tensor]
    stored: tuple[Stored, ...]
    check: Callable[[], None] | None = None
    fixed: tuple[str, ...] = ()
    binding: Binding | None = None
    reading: Callable[[Get], Get] | None = None

    def path_of(self, tensor_name: str) -> str:
        """The dotted path in the model of one of the tensors."""
        return f"{self.module_path}.{tensor_name}".lstrip(".")

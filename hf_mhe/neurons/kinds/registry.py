"""The table from module types to the pieces of their weights that are neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.layout import ROWS, Layout
from hf_mhe.neurons.model.unwrap import qualified

# Kinds whose neurons are the entries of a table, which the model looks up or inserts rather than multiplies with.
TABLES = frozenset({"codebook", "embedding", "position", "token"})


@dataclass(frozen=True)
class Piece:
    """One set of neurons inside one weight of a module.

    `suffix` is appended to the module's name where a module holds more than one set; `head` is the number of rows that
    one attention head takes, in the order of the heads, or 0 where the neurons do not belong to heads.
    """

    weight: str
    kind: str
    layout: Layout = ROWS
    suffix: str = ""
    head: int = 0


Reader = Callable[[nn.Module], Iterable[Piece]]
Entry = TypeVar("Entry")

READERS: dict[str, Reader] = {}
"""By the qualified name of a class. The order does not matter: a class has one entry."""


def lookup(table: Mapping[str, Entry], module: nn.Module) -> Entry | None:
    """The entry of the most derived class of a module that has one."""
    names = (qualified(cls) for cls in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)


def reads(*module_types: type | str) -> Callable[[Reader], Reader]:
    """Register a reader for module types; a type of an optional library is given by its qualified name, unimported."""

    def register(reader: Reader) -> Reader:
        for module_type in module_types:
            name = module_type if isinstance(module_type, str) else qualified(module_type)
            if name in READERS:
                raise MHEError(f"{name} has two readers: {READERS[name].__name__} and {reader.__name__}")
            READERS[name] = reader
        return reader

    return register

"""The tables from module types to the pieces of their weights that are neurons; a new kind is a new entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from hf_mhe.neurons.layout import ROWS, Layout

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
Rule = Callable[[nn.Module], bool]
Entry = TypeVar("Entry")

_READERS: dict[str, Reader] = {}
_RULES: list[tuple[Rule, Reader]] = []
_REST: list[Reader] = []


def qualified(cls: type) -> str:
    """The dotted name of a class, by which the tables know it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def lookup(table: dict[str, Entry], module: nn.Module) -> Entry | None:
    """The entry of the most derived class of a module that has one."""
    names = (qualified(cls) for cls in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)


def reads(*module_types: type | str) -> Callable[[Reader], Reader]:
    """Register a reader for module types; a type of an optional library is given by its qualified name, unimported."""

    def register(reader: Reader) -> Reader:
        for module_type in module_types:
            _READERS[module_type if isinstance(module_type, str) else qualified(module_type)] = reader
        return reader

    return register


def reads_where(rule: Rule) -> Callable[[Reader], Reader]:
    """Register a reader for modules of classes in no table, known by what a rule finds on the module itself."""

    def register(reader: Reader) -> Reader:
        _RULES.append((rule, reader))
        return reader

    return register


def reads_the_rest(reader: Reader) -> Reader:
    """Register a reader that every module is shown; what it finds counts for weights that nothing else reads."""
    _REST.append(reader)
    return reader


def pieces(module: nn.Module) -> tuple[Piece, ...]:
    """The pieces of a module's weights that are neurons: by the entry of its class, else the first rule; the rest."""
    reader = lookup(_READERS, module)
    if reader is None:
        reader = next((found for rule, found in _RULES if rule(module)), None)
    own = tuple(reader(module)) if reader is not None else ()
    read = {piece.weight for piece in own}
    return own + tuple(piece for rest in _REST for piece in rest(module) if piece.weight not in read)

"""How the rows of one fused layer fall apart into projections, as only the module around the layer knows.

Note [Fused projections]. `query_key_value` is a Linear like any other; that its rows are queries, keys and values, and
whether they lie below each other or interleave head by head, is decided where the parent module splits the output. So
the parent's class is what is registered, and the sizes are read from the parent's own attributes; where there is no
entry, the parent's code may say it (see Note [Split by use]). Where neither does, or where the sizes do not add up to
the layer's rows, the layer stays one group: nothing is guessed from names or shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_mhe.errors import MHEError
from hf_mhe.neurons.kinds.registry import Piece
from hf_mhe.neurons.layout import Take, Then


@dataclass(frozen=True)
class Projection:
    """One projection: how many rows of each block it takes, and how many rows an attention head takes (0: no heads).

    The empty name is for a layer that is one projection as a whole.
    """

    name: str
    length: int
    head: int = 0


@dataclass(frozen=True)
class RowSplit:
    """The projections in a layer's rows, in order; with `blocks` > 1 in each of that many equal blocks."""

    projections: tuple[Projection, ...]
    blocks: int = 1

    @property
    def rows(self) -> int:
        return self.blocks * sum(projection.length for projection in self.projections)


Splitter = Callable[[Any], Mapping[str, RowSplit]]
"""From a module to the split of each of its fused layers, by the name of the child."""

SPLITTERS: dict[str, Splitter] = {}
"""By the qualified name of a class. The order does not matter: a class has one entry."""


def splits(*names: str) -> Callable[[Splitter], Splitter]:
    """Register a splitter for classes of transformers, named `folder.Class`."""

    def register(splitter: Splitter) -> Splitter:
        for name in names:
            folder, _, cls = name.rpartition(".")
            package, _, file = folder.partition("/")
            key = f"transformers.models.{package}.modeling_{file or package}.{cls}"
            if key in SPLITTERS:
                raise MHEError(f"{key} has two splitters: {SPLITTERS[key].__name__} and {splitter.__name__}")
            SPLITTERS[key] = splitter
        return splitter

    return register


def split(piece: Piece, row_split: RowSplit | None, rows: int) -> Iterator[Piece]:
    """The pieces that a piece of `rows` neurons falls into; itself where no split fits it."""
    if row_split is None or row_split.rows != rows:
        yield piece
        return
    start = 0
    for projection in row_split.projections:
        if projection.name:
            layout = Then(piece.layout, Take(start, projection.length, row_split.blocks))
            suffix = ".".join(filter(None, (piece.suffix, projection.name)))
            yield replace(piece, layout=layout, suffix=suffix, head=projection.head)
        else:
            yield replace(piece, head=projection.head)
        start += projection.length


def heads(piece: Piece, rows: int) -> Iterator[Piece]:
    """One piece for each attention head of a piece of `rows` neurons; itself where its neurons belong to no heads."""
    if piece.head == 0 or rows % piece.head:
        yield piece
        return
    for index, start in enumerate(range(0, rows, piece.head)):
        suffix = ".".join(filter(None, (piece.suffix, f"head.{index}")))
        yield replace(piece, layout=Then(piece.layout, Take(start, piece.head)), suffix=suffix)

"""How the neurons of one layer fall apart into projections, as only the module around the layer knows.

Note [Fused projections]. `query_key_value` is a Linear like any other; that its rows are queries, keys and values, and
whether they lie below each other or interleave head by head, is decided where the parent module splits the output. So
the parent's class is what is registered, and the sizes are read from the parent's own attributes; where there is no
entry, the parent's code may say it (see Note [Cut by use]). Where neither does, or where the sizes do not add up to
the layer's rows, the layer stays one group: nothing is guessed from names or shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from hf_mhe.neurons.kinds.registry import Piece, lookup
from hf_mhe.neurons.layout import Take, Then
from hf_mhe.neurons.model.unwrap import bare


@dataclass(frozen=True)
class Part:
    """One projection: how many rows of each block it takes, and how many rows an attention head takes (0: no heads).

    The empty name is for a layer that is one projection as a whole.
    """

    name: str
    length: int
    head: int = 0


@dataclass(frozen=True)
class Division:
    """The parts of a layer's rows, in order; with `blocks` > 1 that order repeats in each of so many equal blocks."""

    parts: tuple[Part, ...]
    blocks: int = 1

    @property
    def rows(self) -> int:
        return self.blocks * sum(part.length for part in self.parts)


Divider = Callable[[Any], Mapping[str, Division]]

DIVIDERS: dict[str, Divider] = {}
_PARTS: list[Divider] = []
_HEADS: list[Divider] = []


def divides(*names: str) -> Callable[[Divider], Divider]:
    """Register a divider (module -> {child: its division}) for classes of transformers, named `folder.Class`."""

    def register(divider: Divider) -> Divider:
        for name in names:
            folder, _, cls = name.rpartition(".")
            package, _, file = folder.partition("/")
            DIVIDERS[f"transformers.models.{package}.modeling_{file or package}.{cls}"] = divider
        return divider

    return register


def tells_parts(divider: Divider) -> Divider:
    """Register a divider for modules that no entry knows."""
    _PARTS.append(divider)
    return divider


def tells_heads(divider: Divider) -> Divider:
    """Register a divider for modules that no entry knows: it may only tell the heads of unfused projections."""
    _HEADS.append(divider)
    return divider


def divisions(root: nn.Module) -> dict[int, Division]:
    """The division of every layer that has one, by the id of the layer's module."""
    found: dict[int, Division] = {}
    for module in root.modules():
        for child, division in _division(module).items():
            layer = getattr(module, child, None)
            if isinstance(layer, nn.Module):
                found[id(bare(layer))] = division
    return found


def _division(module: nn.Module) -> Mapping[str, Division]:
    divider = lookup(DIVIDERS, module)
    try:
        if divider is not None:
            return divider(module)
        return {child: division for tell in (*_HEADS, *_PARTS) for child, division in tell(module).items()}
    except (AttributeError, ZeroDivisionError):
        # Another release of transformers names the sizes otherwise: see Note [Fused projections].
        return {}


def divide(piece: Piece, division: Division | None, rows: int) -> Iterator[Piece]:
    """The pieces that a piece of `rows` neurons falls into; itself where no division fits it."""
    if division is None or division.rows != rows:
        yield piece
        return
    start = 0
    for part in division.parts:
        if part.name:
            layout = Then(piece.layout, Take(start, part.length, division.blocks))
            suffix = ".".join(filter(None, (piece.suffix, part.name)))
            yield replace(piece, layout=layout, suffix=suffix, head=part.head)
        else:
            yield replace(piece, head=part.head)
        start += part.length


def heads(piece: Piece, rows: int) -> Iterator[Piece]:
    """One piece for each attention head of a piece of `rows` neurons; itself where its neurons belong to no heads."""
    if piece.head == 0 or rows % piece.head:
        yield piece
        return
    for index, start in enumerate(range(0, rows, piece.head)):
        suffix = ".".join(filter(None, (piece.suffix, f"head.{index}")))
        yield replace(piece, layout=Then(piece.layout, Take(start, piece.head)), suffix=suffix)

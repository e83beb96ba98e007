"""The projections of a layer that no entry knows, from how its module's code splits it: see Note [Split by use]."""

from __future__ import annotations

import re
from ast import Starred, unparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from hf_mhe.neurons.kinds.from_source.splits import Order, SourceSplit, View, source_splits, worth
from hf_mhe.neurons.kinds.fused.split import Projection, RowSplit
from hf_mhe.neurons.model.unwrap import bare

_COMMON = {
    name: re.compile(rf"{name}$|{word}(_.*)?$")
    for name, word in (("q", "quer(y|ies)"), ("k", "keys?"), ("v", "values?"))
}


@dataclass(frozen=True)
class _Axes:
    """The axes of an output: for each the number of the channels' factor that it is, or None where it is no channel.

    `factors` are (size, expression), the slowest first. With `axes` None there are any number, the last the channels;
    with `loose` any number may come before them, and they are counted from the last.
    """

    factors: tuple[tuple[int, str], ...]
    axes: tuple[int | None, ...] | None = None
    loose: bool = False

    def along(self, axis: int) -> int | None:
        if self.axes is None:
            # (batch, sequence, channels): the second could also be the sequence.
            return 0 if axis in (-1, 2) else None
        within = -len(self.axes) <= axis < (0 if self.loose else len(self.axes))
        return self.axes[axis] if within else None


def by_source(module: Any) -> dict[str, RowSplit]:
    """The split of each layer of a module whose output the module's code splits in one way only."""
    found: dict[str, set[RowSplit | None]] = {}
    for split in source_splits(type(module)):
        layer = module._modules.get(split.layer)
        if layer is None:
            continue
        start = _channels(bare(layer))
        if start is not None:
            found.setdefault(split.layer, set()).update(_row_splits(module, split, start))
    return {
        layer: row_split
        for layer, ways in found.items()
        if len(ways) == 1
        for row_split in ways
        if row_split is not None
    }


def _channels(layer: nn.Module) -> _Axes | None:
    if isinstance(layer, nn.Linear):
        return _Axes(((layer.out_features, ""),))
    if type(layer).__name__ == "Conv1D":
        return _Axes(((layer.nf, ""),))  # type: ignore[arg-type]
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == 1:
        return _Axes(((layer.out_channels, ""),), (None, 0, *(None for _ in layer.kernel_size)))
    return None


def _row_splits(module: nn.Module, split: SourceSplit, start: _Axes) -> Iterator[RowSplit | None]:
    """The row splits that a split in the code may mean; None for one of channels whose sizes are not known."""
    axis = split.axis
    if split.by:
        glu = module._modules.get(split.by)
        if not isinstance(glu, nn.GLU):
            return
        axis = glu.dim
    states = [start]
    for step in split.steps:
        states = [after for state in states for after in _after(module, step, state)]
        if not states:
            yield None
    for state in states:
        index = state.along(axis)
        if index is not None:
            yield _row_split(module, split, state.factors, index)


def _after(module: nn.Module, step: View | Order, state: _Axes) -> Iterator[_Axes]:
    if isinstance(step, Order):
        axes = state.axes
        if axes is None:
            rank = 3 if step.swap else len(step.axes)
            axes = (*(None for _ in range(rank - 1)), 0)
        order = list(range(len(axes)))
        if (
            state.loose
            or any(not -len(axes) <= axis < len(axes) for axis in step.axes)
            or len(set(step.axes)) < len(step.axes)
        ):
            return
        if step.swap:
            one, other = step.axes
            order[one], order[other] = order[other], order[one]
        elif len(step.axes) == len(axes):
            order = list(step.axes)
        else:
            return
        yield replace(state, axes=tuple(axes[axis] for axis in order))
        return
    sizes = [(worth(module, size), unparse(size)) for size in step.sizes]
    spread = [index for index, size in enumerate(step.sizes) if isinstance(size, Starred)]
    if len(state.factors) == 1 and spread in ([], [0]):
        for begin in range(1, len(sizes) if state.axes is None else 2):
            yield from (replace(viewed, loose=bool(spread)) for viewed in _viewed(sizes, begin, state))
    elif state.axes is not None and state.axes[0] is not None and sizes[0][0] == state.factors[state.axes[0]][0]:
        # Only the first axis is still known, the others are merged.
        yield replace(state, axes=(state.axes[0], *(None for _ in sizes[1:])))


def _viewed(sizes: list[tuple[Any, str]], begin: int, state: _Axes) -> Iterator[_Axes]:
    """The channels as the axes from `begin` on; one size at most may be unknown, before spatial axes none."""
    rows = state.factors[0][0]
    if not _is_known(sizes[begin][0]):
        return
    if state.axes is None:
        end = len(sizes)
    else:
        products = [
            prod(size for size, _ in sizes[begin:end] if _is_known(size)) for end in range(begin + 1, len(sizes) + 1)
        ]
        if state.axes[1] is None or rows not in products:
            return
        end = begin + 1 + products.index(rows)
    channels = sizes[begin:end]
    known = prod(size for size, _ in channels if _is_known(size))
    unknown = sum(not _is_known(size) for size, _ in channels)
    if unknown > 1 or rows % known or (unknown == 0 and known != rows):
        return
    factors = tuple((size if _is_known(size) else rows // known, text) for size, text in channels)
    axes = (*(None for _ in range(begin)), *range(len(factors)), *(None for _ in range(len(sizes) - end)))
    yield _Axes(factors, axes)


def _is_known(size: Any) -> bool:
    return isinstance(size, int) and size > 0


def _row_split(
    module: nn.Module, split: SourceSplit, factors: tuple[tuple[int, str], ...], index: int
) -> RowSplit | None:
    size, _ = factors[index]
    inner = prod(length for length, _ in factors[index + 1 :])
    count = len(split.names)
    sizes = worth(module, split.sizes) if split.sizes is not None else None
    if split.how == "split" and isinstance(sizes, list):
        lengths = sizes
    elif split.how == "split" and isinstance(sizes, int):
        lengths = [sizes] * count
    elif split.how == "unbind" or split.how == "glu" or (split.how == "chunk" and sizes == count):
        lengths = [size // count] * count
    else:
        return None
    blocks = prod(length for length, _ in factors[:index])
    if len(lengths) != count or sum(lengths) != size or min(lengths) * inner * blocks < 2 or count < 2:
        return None
    within = factors[index + 1 :]
    head = 0
    if len(within) > 1 and blocks == 1 and _of_heads(within[0][1]):
        head = inner // within[0][0]
    if len({name[:2] for name in split.names} & {"q_", "k_", "v_"}) == 1 == len({name[:2] for name in split.names}):
        return None  # the rotated part of a projection and the rest of it
    parts = zip(_projection_names(split.names), lengths, strict=True)
    if index == 1 and _of_heads(factors[0][1]):
        return RowSplit(tuple(Projection(name, length * inner, length * inner) for name, length in parts), blocks)
    return RowSplit(tuple(Projection(name, length * inner, head) for name, length in parts), blocks)


def _of_heads(expression: str) -> bool:
    return "head" in expression and "dim" not in expression and "size" not in expression


def _projection_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """As the code calls them; queries, keys and values as everywhere, and numbers where names are no names."""
    common = tuple(
        next((short for short, word in _COMMON.items() if word.match(name)), re.sub(r"(?<!^hidden)_states$", "", name))
        for name in names
    )
    for each in (common, names):
        if len(set(each)) == len(each) and "_" not in each:
            return each
    return tuple(map(str, range(len(names))))

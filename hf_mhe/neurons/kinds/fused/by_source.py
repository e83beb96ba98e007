"""The projections of a layer that no entry knows, from the cut that its module's code makes: see Note [Cut by use]."""

from __future__ import annotations

import re
from ast import Starred, unparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from hf_mhe.neurons.kinds.from_source.splits import Cut, Order, View, cuts, worth
from hf_mhe.neurons.kinds.fused.split import Division, Part, tells_parts
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


@tells_parts
def by_cut(module: Any) -> dict[str, Division]:
    """The division of each layer of a module whose output the module's code cuts in one way only."""
    found: dict[str, set[Division | None]] = {}
    for cut in cuts(type(module)):
        layer = module._modules.get(cut.layer)
        if layer is None:
            continue
        start = _channels(bare(layer))
        if start is not None:
            found.setdefault(cut.layer, set()).update(_divisions(module, cut, start))
    return {
        name: division for name, ways in found.items() if len(ways) == 1 for division in ways if division is not None
    }


def _channels(layer: nn.Module) -> _Axes | None:
    if isinstance(layer, nn.Linear):
        return _Axes(((layer.out_features, ""),))
    if type(layer).__name__ == "Conv1D":
        return _Axes(((layer.nf, ""),))  # type: ignore[arg-type]
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == 1:
        return _Axes(((layer.out_channels, ""),), (None, 0, *(None for _ in layer.kernel_size)))
    return None


def _divisions(module: nn.Module, cut: Cut, start: _Axes) -> Iterator[Division | None]:
    """The divisions that a cut may mean; None for a cut of channels whose sizes are not told."""
    axis = cut.axis
    if cut.by:
        glu = module._modules.get(cut.by)
        if not isinstance(glu, nn.GLU):
            return
        axis = glu.dim
    states = [start]
    for step in cut.steps:
        states = [after for state in states for after in _after(module, step, state)]
        if not states:
            yield None
    for state in states:
        index = state.along(axis)
        if index is not None:
            yield _parts(module, cut, state.factors, index)


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
        # Only the first axis is still told apart, the others flow together.
        yield replace(state, axes=(state.axes[0], *(None for _ in sizes[1:])))


def _viewed(sizes: list[tuple[Any, str]], begin: int, state: _Axes) -> Iterator[_Axes]:
    """The channels as the axes from `begin` on, of which one size at most is not told; before spatial axes, none."""
    rows = state.factors[0][0]
    if not _told(sizes[begin][0]):
        return
    if state.axes is None:
        end = len(sizes)
    else:
        products = [
            prod(size for size, _ in sizes[begin:end] if _told(size)) for end in range(begin + 1, len(sizes) + 1)
        ]
        if state.axes[1] is None or rows not in products:
            return
        end = begin + 1 + products.index(rows)
    channels = sizes[begin:end]
    known = prod(size for size, _ in channels if _told(size))
    untold = sum(not _told(size) for size, _ in channels)
    if untold > 1 or rows % known or (untold == 0 and known != rows):
        return
    factors = tuple((size if _told(size) else rows // known, text) for size, text in channels)
    axes = (*(None for _ in range(begin)), *range(len(factors)), *(None for _ in range(len(sizes) - end)))
    yield _Axes(factors, axes)


def _told(size: Any) -> bool:
    return isinstance(size, int) and size > 0


def _parts(module: nn.Module, cut: Cut, factors: tuple[tuple[int, str], ...], index: int) -> Division | None:
    size, _ = factors[index]
    inner = prod(length for length, _ in factors[index + 1 :])
    count = len(cut.names)
    told = worth(module, cut.sizes) if cut.sizes is not None else None
    if cut.how == "split" and isinstance(told, list):
        lengths = told
    elif cut.how == "split" and isinstance(told, int):
        lengths = [told] * count
    elif cut.how == "unbind" or cut.how == "glu" or (cut.how == "chunk" and told == count):
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
    if len({name[:2] for name in cut.names} & {"q_", "k_", "v_"}) == 1 == len({name[:2] for name in cut.names}):
        return None  # the rotated part of a projection and the rest of it
    parts = zip(_part_names(cut.names), lengths, strict=True)
    if index == 1 and _of_heads(factors[0][1]):
        return Division(tuple(Part(name, length * inner, length * inner) for name, length in parts), blocks)
    return Division(tuple(Part(name, length * inner, head) for name, length in parts), blocks)


def _of_heads(expression: str) -> bool:
    return "head" in expression and "dim" not in expression and "size" not in expression


def _part_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """As the code calls them; queries, keys and values as everywhere, and numbers where names are no names."""
    common = tuple(
        next((short for short, word in _COMMON.items() if word.match(name)), re.sub(r"(?<!^hidden)_states$", "", name))
        for name in names
    )
    for each in (common, names):
        if len(set(each)) == len(each) and "_" not in each:
            return each
    return tuple(map(str, range(len(names))))

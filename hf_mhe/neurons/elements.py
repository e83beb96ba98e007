"""The elements of a weight that a layout takes, as a view: to be read and written where they are stored.

A layout gives rows (n, d), and copies the weight where these do not lie so in memory. Whoever needs the elements and
not the rows, for an inner product or a norm, need not have the copy.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_mhe.neurons.layout import ByAxes, Layout, Rows, Slab, Take, Then, TransposedKernels


def has_view(layout: Layout) -> bool:
    """Whether `elements` knows the layout."""
    if isinstance(layout, Then):
        return isinstance(layout.second, Take) and _has_rows(layout.first)
    return isinstance(layout, (Rows, Slab, ByAxes, TransposedKernels))


def elements(layout: Layout, weight: Tensor) -> Tensor:
    """A view of the weight with the elements of the layout's rows, neurons along the first axes, of whatever shape.

    Weights of one shape under layouts of one kind give views of one shape, in which equal places are equal places of
    the matrices.
    """
    assert has_view(layout)
    if isinstance(layout, Rows):
        cut = weight if layout.cut is None else weight.narrow(*layout.cut)
        return cut.movedim(layout.neuron_axis, 0)
    if isinstance(layout, ByAxes):
        view = weight.permute(*layout.stack(weight.ndim), *layout.neurons, *layout.coordinates)
        for index in layout.entry:
            view = view.select(0, index)
        return view
    if isinstance(layout, TransposedKernels):
        return weight.unflatten(0, (layout.groups, -1)).transpose(1, 2)
    if isinstance(layout, Then):
        take: Any = layout.second
        rows = elements(layout.first, weight).unflatten(0, (take.blocks, -1))
        return rows.narrow(1, take.start, take.length)
    return layout(weight)  # a slab


def _has_rows(layout: Layout) -> bool:
    """Whether the first axis of its elements counts the neurons."""
    return isinstance(layout, (Rows, Slab)) or (isinstance(layout, ByAxes) and len(layout.neurons) == 1)


def free_axes(layout: Layout, rank: int) -> set[int]:
    """The axes of a weight along which it may be cut, so that the elements of its parts are parts of its elements.

    None for a layout without a view.
    """
    axes = set(range(rank))
    if isinstance(layout, Rows):
        return axes - ({layout.cut[0] % rank} if layout.cut is not None else set())
    if isinstance(layout, Slab):
        return axes - {0}
    if isinstance(layout, ByAxes):
        return {axis % rank for axis in layout.neurons + layout.coordinates}
    if isinstance(layout, TransposedKernels):
        return axes - {0}
    if isinstance(layout, Then) and has_view(layout):
        return free_axes(layout.first, rank) - {_neuron_axis(layout.first, rank)}
    return set()


def _neuron_axis(layout: Layout, rank: int) -> int:
    if isinstance(layout, Rows):
        return layout.neuron_axis % rank
    if isinstance(layout, Slab):
        return 1 + layout.neuron_axis % (rank - 1)
    assert isinstance(layout, ByAxes)
    return layout.neurons[0] % rank

"""How a stored weight is laid out as rows of neurons: one transform for live modules and for checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Layout = Callable[[Tensor], Tensor]
"""A differentiable map from a stored weight to its neurons (n, d). Equal layouts compare equal."""


@dataclass(frozen=True)
class Rows:
    """Axis `neuron_axis` counts the neurons, all other axes together are their coordinates.

    `cut=(axis, start, length)` first keeps only that slice of the weight: one gate, one projection, one conv group.
    """

    neuron_axis: int = 0
    cut: tuple[int, int, int] | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        if self.cut is not None:
            weight = weight.narrow(*self.cut)
        return weight.movedim(self.neuron_axis, 0).flatten(1)


ROWS = Rows()


@dataclass(frozen=True)
class Slab:
    """Entry `index` of a three-dimensional stack of matrices, one expert's; `neuron_axis` is that of the matrix."""

    index: int
    neuron_axis: int = 0

    def __call__(self, weight: Tensor) -> Tensor:
        return self.within(weight.select(0, self.index))

    def within(self, matrix: Tensor) -> Tensor:
        """The neurons of the entry, of which the matrix was taken out before."""
        return matrix.movedim(self.neuron_axis, 0)


@dataclass(frozen=True)
class ByAxes:
    """Axes `neurons` together count the neurons, axes `coordinates` together are theirs; negative, from the last.

    Every other axis counts matrices: `entry` has an index for each, in their order.
    """

    neurons: tuple[int, ...]
    coordinates: tuple[int, ...]
    entry: tuple[int, ...] = ()

    def __call__(self, weight: Tensor) -> Tensor:
        matrix = weight.permute(*self.stack(weight.ndim), *self.neurons, *self.coordinates)
        for index in self.entry:
            matrix = matrix.select(0, index)
        return matrix.flatten(0, len(self.neurons) - 1).flatten(1)

    def stack(self, rank: int) -> tuple[int, ...]:
        """The axes that count matrices."""
        return tuple(axis for axis in range(-rank, 0) if axis not in self.neurons + self.coordinates)


@dataclass(frozen=True)
class Take:
    """Of neurons (n, d) that lie in `blocks` equal blocks, rows `start : start + length` of each block, in order."""

    start: int
    length: int
    blocks: int = 1

    def __call__(self, neurons: Tensor) -> Tensor:
        if self.blocks == 1:
            return neurons.narrow(0, self.start, self.length)
        return neurons.unflatten(0, (self.blocks, -1)).narrow(1, self.start, self.length).flatten(0, 1)


@dataclass(frozen=True)
class Then:
    """One layout after the other: all neurons of a weight first, then some of them."""

    first: Layout
    second: Layout

    def __call__(self, weight: Tensor) -> Tensor:
        return self.second(self.first(weight))


@dataclass(frozen=True)
class TransposedKernels:
    """All kernels of a depthwise transposed convolution, (in, out / groups, *kernel), in output channel order."""

    groups: int

    def __call__(self, weight: Tensor) -> Tensor:
        per_group = weight.unflatten(0, (self.groups, -1))  # groups, in / groups, out / groups, *kernel
        return per_group.transpose(1, 2).flatten(0, 1).flatten(1)

"""Panels: how the pairs of n neurons are divided into blocks that fit the cache, each pair in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Note [Panels]
# C = U U^T is symmetric: `n^2/2` cosines are enough, `n^2 d` operations, and `2 n^2 d` more for the two products of
# the slopes with the rows. The triangle of pairs is halved again and again: two smaller triangles and the rectangle
# between them. A rectangle wastes nothing; a last triangle is computed as a whole square, which wastes
# `square / 3n` of the work. All halves of one level are of one size, so that the small blocks of a level are one
# batched product, where a matrix library reaches its rate with blocks of 200 rows that one by one get three quarters
# of it; the few neurons that do not divide evenly are compared with all others at the end. Rejected: strips of rows
# from the diagonal on, which are either thin, and then slow in the product, or have large squares at their head.
#
# Where a value alone is wanted, the products are a third and the waste of the squares counts three times. So they are
# half as long, too short to be as good for the products of a gradient, and the rectangles, nothing of which is
# needed once they are summed, are what the second-level cache holds. More rows than columns: a matrix library gives
# each thread its share of the longer side, and then the passes find in a core's cache what that core has computed.
_SQUARE = 256
_SIDE = 1536
_SQUARE_OF_VALUES = 128
_ROWS_OF_VALUES, _COLUMNS_OF_VALUES = 1024, 512
_BATCHED_SIDE = 512  # from this size down the blocks of a level are one batch
_PIECE_ELEMENTS = 1 << 19  # 2 MiB of float32
# A level of the tiling, as one batch, would hold hundreds of cosines for each neuron of a vocabulary.
_BATCH_ELEMENTS = 1 << 22  # 16 MiB of float32
_SIDE_CUDA = 4096
_ALIGNED = 8  # products whose rows are no multiple of it lose a fifth of their rate
_WHOLE = 512  # up to here one square does it: more calls would cost more than the waste


class Panel(NamedTuple):
    """Rows `[row, row_end)` against columns `[column, column_end)`; with `diagonal` the columns begin at the rows."""

    row: int
    row_end: int
    column: int
    column_end: int

    @property
    def rows(self) -> int:
        return self.row_end - self.row

    @property
    def columns(self) -> int:
        return self.column_end - self.column

    @property
    def diagonal(self) -> bool:
        return self.row == self.column


@dataclass(frozen=True)
class PanelBatch:
    """`count` panels of one shape, each `stride` rows and columns after the one before.

    `opens_rows`, `opens_columns`: no earlier batch of the tiling has these neurons on either of its sides.
    """

    first: Panel
    count: int = 1
    stride: int = 0
    opens_rows: bool = False
    opens_columns: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the batch's cosines; two-dimensional where it is one panel."""
        panel = (self.first.rows, self.first.columns)
        return panel if self.count == 1 else (self.count, *panel)

    @property
    def elements(self) -> int:
        return self.count * self.first.rows * self.first.columns

    @property
    def pairs(self) -> int:
        """Ordered pairs of different neurons; of a rectangle, in one order."""
        return self.elements - (self.count * self.first.rows if self.first.diagonal else 0)

    @property
    def orders(self) -> int:
        """How often each of these ordered pairs counts: a square on the diagonal holds both orders already."""
        return 1 if self.first.diagonal else 2

    def items(self) -> Iterator[Panel]:
        row, row_end, column, column_end = self.first
        for shift in range(0, self.count * self.stride, self.stride) if self.count > 1 else (0,):
            yield Panel(row + shift, row_end + shift, column + shift, column_end + shift)

    def left(self, matrix: Tensor) -> Tensor:
        """A view of the panels' rows of a matrix `(n, d)`: `(rows, d)`, or `(count, rows, d)`."""
        return self._side(matrix, self.first.row, self.first.row_end)

    def right(self, matrix: Tensor) -> Tensor:
        """The same of the panels' columns."""
        return self._side(matrix, self.first.column, self.first.column_end)

    def _side(self, matrix: Tensor, start: int, stop: int) -> Tensor:
        if self.count == 1:
            return matrix[start:stop]
        base = self.first.row
        whole = matrix[base : base + self.count * self.stride].view(self.count, self.stride, -1)
        return whole if stop - start == self.stride else whole[:, start - base : stop - base]

    def pieces(self) -> Iterator[tuple[slice, PanelBatch]]:
        """Cut along the first dimension into pieces that the second-level cache holds, for the passes over them."""
        row, row_end, column, column_end = self.first
        if self.count > 1:
            yield from self.cut(_PIECE_ELEMENTS)
        elif self.first.diagonal:
            yield slice(0, self.first.rows), self
        else:
            for start, stop in bounds(row, row_end, max(1, _PIECE_ELEMENTS // self.first.columns)):
                yield slice(start - row, stop - row), PanelBatch(Panel(start, stop, column, column_end))

    def cut(self, elements: int) -> Iterator[tuple[slice, PanelBatch]]:
        """Cut into batches of so many elements at most, or of single panels."""
        row, row_end, column, column_end = self.first
        step = max(1, elements // (self.first.rows * self.first.columns))
        for start in range(0, self.count, step):
            stop, shift = min(start + step, self.count), start * self.stride
            moved = Panel(row + shift, row_end + shift, column + shift, column_end + shift)
            part = PanelBatch(moved, stop - start, self.stride, self.opens_rows, self.opens_columns)
            yield slice(start, stop), part


def panel_batches(n: int, device: torch.device, *, gradient: bool = True) -> list[PanelBatch]:
    """A tiling of the pairs `i < j` of n rows: squares on the diagonal, with each pair twice, and rectangles."""
    square, rows, columns, batched = _SIDE_CUDA, _SIDE_CUDA, _SIDE_CUDA, 0
    if device.type == "cpu":
        square, rows, columns, batched = _SQUARE, _SIDE, _SIDE, _BATCHED_SIDE
        if not gradient:
            square, rows, columns = _SQUARE_OF_VALUES, _ROWS_OF_VALUES, _COLUMNS_OF_VALUES
    if one_square(n, device):
        return [PanelBatch(Panel(0, n, 0, n), opens_rows=True, opens_columns=True)]
    blocks = 2
    while n // blocks > square:
        blocks *= 2
    size = n // blocks // _ALIGNED * _ALIGNED
    even = size * blocks
    batches = (*_rectangles(size, blocks, rows, columns, batched), _squares(size, blocks))
    return [*(part for batch in batches for _, part in batch.cut(_BATCH_ELEMENTS)), *_rest(even, n, columns)]


def one_square(n: int, device: torch.device) -> bool:
    """Whether all pairs of n rows are one square."""
    return n <= (_WHOLE if device.type == "cpu" else _SIDE_CUDA)


def panels(n: int, device: torch.device) -> list[Panel]:
    """The panels of `panel_batches`, one by one."""
    return [panel for batch in panel_batches(n, device) for panel in batch.items()]


def block_shape(n: int, device: torch.device) -> tuple[int, int]:
    """Rows and columns of one block of a rectangle with n columns."""
    side = _SIDE if device.type == "cpu" else _SIDE_CUDA
    return min(n, side), min(n, side)


def strips(n: int, rows: int) -> Iterator[Panel]:
    """A tiling of the pairs `i <= j` of n rows by block rows, each from the diagonal to the last column."""
    for row in range(0, n, rows):
        yield Panel(row, min(row + rows, n), row, n)


def _rectangles(size: int, blocks: int, rows: int, columns: int, batched: int) -> Iterator[PanelBatch]:
    """Between the halves of all rows, of each half, and so on down to single blocks."""
    halves = blocks // 2
    while halves:
        half = halves * size
        count = blocks // (2 * halves)
        first = halves == blocks // 2
        if half <= batched and count > 1:
            yield PanelBatch(Panel(0, half, half, 2 * half), count, 2 * half)
        else:
            for base in range(0, blocks * size, 2 * half):
                for row, row_end in bounds(base, base + half, rows):
                    for column, column_end in bounds(base + half, base + 2 * half, columns):
                        panel = Panel(row, row_end, column, column_end)
                        opens_rows, opens_columns = first and column == base + half, first and row == base
                        yield PanelBatch(panel, opens_rows=opens_rows, opens_columns=opens_columns)
        halves //= 2


def _squares(size: int, blocks: int) -> PanelBatch:
    return PanelBatch(Panel(0, size, 0, size), blocks, size)


def _rest(start: int, stop: int, side: int) -> Iterator[PanelBatch]:
    """The last rows, some at a time: against all rows before them, and among themselves."""
    for row, row_end in bounds(start, stop, side):
        for column, column_end in bounds(0, row, side):
            yield PanelBatch(Panel(row, row_end, column, column_end), opens_rows=column == 0)
        yield PanelBatch(Panel(row, row_end, row, row_end))


def bounds(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Bounds of parts of `[start, stop)`, at most `most` long: nearly equal, of aligned lengths but for the last."""
    if start == stop:
        return
    count = -(-(stop - start) // most)
    step = -(-(stop - start) // count)
    step = min(-(-step // _ALIGNED) * _ALIGNED, most)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)

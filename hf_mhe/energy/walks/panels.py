"""Panels: how the pairs of n neurons are divided into blocks that fit the cache, each pair in one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
        along, across = matrix.stride()
        size, strides = (self.count, stop - start, matrix.shape[1]), (self.stride * along, along, across)
        return matrix.as_strided(size, strides, matrix.storage_offset() + start * along)

    def products_(self, matrix: Tensor, out: Tensor) -> None:
        """The panels' rows times their columns, in `out` of `shape`."""
        multiply = torch.mm if self.count == 1 else torch.bmm
        multiply(self.left(matrix), self.right(matrix).mT, out=out)

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


# Note [Rounds]
# Beside its products a walk over a thousand neurons is calls: a pass over 300,000 cosines takes 30 us, and the code
# that leads to it half of that, because a product has just driven it from the caches. So batches go together while a
# block of all of them stays small, and each pass is one call. Where one round has all pairs, up to 1,400 neurons, its
# slopes are written twice into a whole square, and the gradient is one product of full size in place of two for each
# batch: 7 % less time at 768 x 768. Then small squares cost nothing. In few dimensions the writing costs what the
# products gain. Rejected: cosines written into that square from the start, where each pass goes over 1.7 times as
# much; a block laid out by threads, whose products take a tenth longer.
_ONE_ROUND = 1 << 20  # elements of the only round
_ROUND_ELEMENTS = 3 << 17  # of one of several
_MIRRORED_FROM = 384  # dimensions
_REMEMBERED_BELOW = 1 << 12  # rows; a tiling of more has thousands of batches, and is soon made beside its products


@dataclass(frozen=True)
class Round:
    """Batches whose cosines lie side by side in one flat block, the rectangles first: a pass goes over all of them.

    `parts` has the place of each batch in the block, and `rectangles` says where the rectangles end. With `ordinary`
    the block is small enough for passes over all of it; with `has_all` there is no other round.
    """

    parts: tuple[tuple[slice, PanelBatch], ...]
    rectangles: int
    ordinary: bool
    has_all: bool

    @staticmethod
    def of(batches: Iterable[PanelBatch], *, most: int, has_all: bool) -> Round:
        """The batches in their order, but for the squares, which go last: no square opens rows or columns."""
        parts: list[tuple[slice, PanelBatch]] = []
        end = rectangles = 0
        for batch in sorted(batches, key=lambda batch: batch.first.diagonal):
            parts.append((slice(end, end + batch.elements), batch))
            end += batch.elements
            if not batch.first.diagonal:
                rectangles = end
        return Round(tuple(parts), rectangles, end <= most, has_all)

    @property
    def elements(self) -> int:
        return self.parts[-1][0].stop

    def is_mirrored(self, d: int) -> bool:
        """Whether the gradient of rows of d dimensions is one product, with a square that `mirror_` fills."""
        return self.has_all and len(self.parts) > 1 and d >= _MIRRORED_FROM

    def fill_diagonals_(self, block: Tensor, value: float = 0.0) -> None:
        """Set the diagonals of the squares in the flat block of this round."""
        for part, batch in self.parts:
            if batch.first.diagonal:
                block[part].view(batch.shape).diagonal(dim1=-2, dim2=-1).fill_(value)

    def mirror_(self, block: Tensor, square: Tensor) -> None:
        """Write the flat block of a round that has all pairs of n rows into `square` `(n, n)`, each pair twice."""
        n = len(square)
        for part, batch in self.parts:
            panel, step = batch.first, batch.stride * (n + 1)
            values = block[part].view(batch.count, panel.rows, panel.columns)
            square.as_strided(values.shape, (step, n, 1), panel.row * n + panel.column).copy_(values)
            if not panel.diagonal:
                square.as_strided(values.mT.shape, (step, n, 1), panel.column * n + panel.row).copy_(values.mT)


def panel_rounds(n: int, d: int, device: torch.device, *, gradient: bool = True) -> Sequence[Round]:
    """The tiling of `panel_batches` in rounds; where one is mirrored, with squares as small as for values."""
    make = _remembered_rounds if n < _REMEMBERED_BELOW else _rounds
    if gradient and device.type == "cpu" and d >= _MIRRORED_FROM:
        rounds = make(n, device, gradient=False)
        if len(rounds) == 1:
            return rounds
    return make(n, device, gradient=gradient)


def _rounds(n: int, device: torch.device, *, gradient: bool) -> Sequence[Round]:
    batches = panel_batches(n, device, gradient=gradient)
    most = _SIDE_CUDA**2
    if device.type == "cpu":
        most = _ONE_ROUND if sum(batch.elements for batch in batches) <= _ONE_ROUND else _ROUND_ELEMENTS
    rounds: list[list[PanelBatch]] = [[]]
    elements = 0
    for batch in batches:
        elements += batch.elements
        if rounds[-1] and elements > most:
            rounds.append([])
            elements = batch.elements
        rounds[-1].append(batch)
    return tuple(Round.of(batches, most=most, has_all=len(rounds) == 1) for batches in rounds)


_remembered_rounds = lru_cache(maxsize=64)(_rounds)

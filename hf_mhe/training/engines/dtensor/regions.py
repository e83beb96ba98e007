"""Which elements of a sharded tensor each rank holds.

Note [Order of the chunks]
A dimension that two axes of the mesh shard is chunked twice. `Shard, Shard` is chunked by the axes from left to right.
Where FSDP2 shards what tensor parallel has already sharded, the placement is `_StridedShard, Shard` and the chunks
were made from right to left. A `_StridedShard` alone is a packed weight (gate and up, say): each of its `split_factor`
equal chunks is sharded for itself. Other mixtures are refused, for DTensor itself does not describe them faithfully.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from hf_mhe.errors import MHEError

Run = tuple[int, int]
"""Consecutive indices along one dimension: the first, and their number."""


@dataclass(frozen=True)
class Region:
    """Some elements of a tensor: along each dimension some runs of indices; every combination of them is in it."""

    runs: tuple[tuple[Run, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a tensor of these elements alone, the runs of each dimension joined."""
        return tuple(sum(length for _, length in runs) for runs in self.runs)

    def take(self, whole: Tensor) -> Tensor:
        """The region of a whole tensor, a view where it is in one piece."""
        if all(len(runs) == 1 for runs in self.runs):
            for dim, ((start, length),) in enumerate(self.runs):
                whole = whole.narrow(dim, start, length)
            return whole
        taken = whole.new_empty(self.shape)
        for inside, outside in self._pieces():
            inside.take(taken).copy_(outside.take(whole))
        return taken

    def put(self, whole: Tensor, values: Tensor) -> None:
        """Write the values of the region into a whole tensor."""
        for inside, outside in self._pieces():
            outside.take(whole).copy_(inside.take(values))

    def rows(self, shape: Sequence[int]) -> Run | None:
        """The run of the first dimension, where that is all that sets the region apart from the tensor `shape`."""
        rest = all(runs == ((0, size),) for runs, size in zip(self.runs[1:], shape[1:], strict=True))
        return self.runs[0][0] if rest and len(self.runs[0]) == 1 else None

    def _pieces(self) -> Iterator[tuple[Region, Region]]:
        """Each piece that is one run along every dimension: where it is in the region, and in the whole tensor."""
        placed = []
        for runs in self.runs:
            starts = itertools.accumulate((length for _, length in runs), initial=0)
            placed.append([((start, run[1]), run) for start, run in zip(starts, runs, strict=False)])
        for piece in itertools.product(*placed):
            yield Region(tuple((inside,) for inside, _ in piece)), Region(tuple((outside,) for _, outside in piece))


@dataclass(frozen=True)
class Holding:
    """What each rank of a mesh holds of a tensor: its region, and which of the copies that is in it.

    Both are indexed by the rank within the mesh's ranks in ascending order. Ranks with the same `copy` hold the tensor
    once between them.
    """

    shape: tuple[int, ...]
    regions: tuple[Region, ...]
    copy: tuple[int, ...]


def holding(tensor: DTensor) -> Holding:
    """What each rank of the tensor's mesh holds of it.

    Raises:
        MHEError: the tensor is placed in a way that has no region a rank, or that torch does not describe faithfully.
    """
    held = _holding(tensor.device_mesh, tuple(tensor.placements), tuple(tensor.shape))
    local, expected = tuple(tensor.to_local().shape), held.regions[_rank_in(tensor.device_mesh)].shape
    if local != expected:
        raise MHEError(
            f"this rank holds {local} of a tensor of shape {tuple(tensor.shape)} placed "
            f"{_named(tensor.placements)}, where it should hold {expected}: shard it with torch's own tools"
        )
    return held


def whole(shape: Sequence[int], ranks: int) -> Holding:
    """Every rank holds everything."""
    everything = Region(tuple(((0, size),) for size in shape))
    return Holding(tuple(shape), (everything,) * ranks, tuple(range(ranks)))


@functools.lru_cache(maxsize=256)  # a mesh computes its ranks at each look, once for every parameter of it
def members(mesh: DeviceMesh) -> tuple[int, ...]:
    """The global ranks of a mesh, ascending."""
    return tuple(sorted(mesh.mesh.flatten().tolist()))


def _rank_in(mesh: DeviceMesh) -> int:
    return members(mesh).index(mesh.get_rank())


@functools.lru_cache(maxsize=4096)
def _holding(mesh: DeviceMesh, placements: tuple[Placement, ...], shape: tuple[int, ...]) -> Holding:
    sizes = tuple(mesh.mesh.shape)
    in_order = sorted(zip(mesh.mesh.flatten().tolist(), itertools.product(*map(range, sizes)), strict=True))
    coordinates = [coordinate for _, coordinate in in_order]
    regions = tuple(region(shape, placements, sizes, coordinate) for coordinate in coordinates)
    copies = [
        tuple(at for at, placement in zip(coordinate, placements, strict=True) if isinstance(placement, Replicate))
        for coordinate in coordinates
    ]
    numbers = {copy: number for number, copy in enumerate(dict.fromkeys(copies))}
    return Holding(shape, regions, tuple(numbers[copy] for copy in copies))


def region(
    shape: Sequence[int], placements: Sequence[Placement], sizes: Sequence[int], coordinate: Sequence[int]
) -> Region:
    """The region of a tensor `shape` that the rank at `coordinate` of a mesh of `sizes` holds.

    Raises:
        MHEError: as `holding`.
    """
    if not all(isinstance(p, Replicate) or _sharded_dim(p, len(shape)) is not None for p in placements):
        raise _unsupported(placements)
    runs: list[tuple[Run, ...]] = []
    for dim, size in enumerate(shape):
        axes = [axis for axis, placement in enumerate(placements) if _sharded_dim(placement, len(shape)) == dim]
        factors = [_split_factor(placements[axis]) for axis in axes]
        along: tuple[Run, ...] = ((0, size),)
        if len(axes) == 1:
            along = tuple(chunk((0, size), factors[0], number) for number in range(factors[0]))
        elif any(factor > 1 for factor in factors):
            if factors != [math.prod(sizes[later] for later in axes[number + 1 :]) for number in range(len(axes))]:
                raise _unsupported(placements)
            axes.reverse()
        for axis in axes:
            along = tuple(chunk(run, sizes[axis], coordinate[axis]) for run in along)
        runs.append(along)
    return Region(tuple(runs))


def chunk(run: Run, chunks: int, number: int) -> Run:
    """One of `chunks`, as torch.chunk makes them: equal lengths, rounded up, until nothing is left."""
    start, length = run
    step = -(-length // chunks)
    first = min(number * step, length)
    return start + first, min(step, length - first)


def _sharded_dim(placement: Placement, dims: int) -> int | None:
    # _StridedShard is private, and a subclass of Shard only in some releases of torch.
    if isinstance(placement, Shard) or type(placement).__name__ == "_StridedShard":
        return int(placement.dim) % dims  # type: ignore[attr-defined]
    return None


def _split_factor(placement: Placement) -> int:
    return int(getattr(placement, "split_factor", 1))


def _unsupported(placements: Sequence[Placement]) -> MHEError:
    return MHEError(
        f"MHE does not support the placement {_named(placements)}: each axis of the mesh may replicate it or shard "
        "one dimension of it (Shard, or FSDP2 over tensor parallel)"
    )


def _named(placements: Sequence[Placement]) -> str:
    return ", ".join(map(repr, placements))

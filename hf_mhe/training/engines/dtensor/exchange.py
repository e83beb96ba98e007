"""Tensors of any dtype from every rank of a process group to every other, in one collective."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Work
from torch.distributed.device_mesh import DeviceMesh

_ALIGNMENT = 16  # bytes: a tensor of any dtype may begin there


class Expected(NamedTuple):
    """A tensor that another rank sends."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def room(self) -> int:
        """Its bytes in a buffer."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


class Arrival:
    """What the other ranks send, on its way."""

    def __init__(self, work: Work | None, buffer: Tensor, expected: Sequence[Sequence[Expected]], own: list[Tensor]):
        self._work, self._buffer, self._expected, self._own = work, buffer, expected, own

    def wait(self, rank: int) -> list[list[Tensor]]:
        """The tensors of each sender; what this rank sent to itself are the same objects, not copies."""
        if self._work is not None:
            self._work.wait()
        senders = list(enumerate(self._expected))
        views = iter(_views(self._buffer, [each for k, sent in senders if k != rank for each in sent]))
        return [self._own if k == rank else [next(views) for _ in sent] for k, sent in senders]


def exchange(
    process_group: ProcessGroup,
    outgoing: Sequence[Sequence[Tensor]],
    incoming: Sequence[Sequence[Expected]],
    device: torch.device,
) -> Arrival:
    """Send `outgoing[k]` to rank k, and expect `incoming[k]` from it; every rank of the group has to call this.

    Bytes are sent, so that tensors of different dtypes travel together, and in the precision that they are stored in.
    """
    rank, ranks = torch.distributed.get_rank(process_group), torch.distributed.get_world_size(process_group)
    own = list(outgoing[rank])
    if ranks == 1:
        return Arrival(None, torch.empty(0, dtype=torch.uint8), incoming, own)
    leaving = [[] if k == rank else [Expected(tuple(t.shape), t.dtype) for t in outgoing[k]] for k in range(ranks)]
    coming = [[] if k == rank else list(incoming[k]) for k in range(ranks)]
    sizes = [[sum(each.room for each in one) for one in side] for side in (leaving, coming)]
    sent, received = (torch.empty(sum(each), dtype=torch.uint8, device=device) for each in sizes)
    tensors = [tensor for k in range(ranks) if k != rank for tensor in outgoing[k]]
    for view, tensor in zip(_views(sent, [each for one in leaving for each in one]), tensors, strict=True):
        view.copy_(tensor)
    work = torch.distributed.all_to_all_single(received, sent, sizes[1], sizes[0], group=process_group, async_op=True)
    return Arrival(work, received, incoming, own)


def _views(buffer: Tensor, expected: Sequence[Expected]) -> list[Tensor]:
    views, start = [], 0
    for each in expected:
        length = math.prod(each.shape) * each.dtype.itemsize
        views.append(buffer[start : start + length].view(each.dtype).view(each.shape))
        start += each.room
    return views


def device_of(mesh: DeviceMesh) -> torch.device:
    """Where the ranks of a mesh communicate."""
    kind = mesh.device_type
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.accelerator.current_device_index())


def process_group_of(global_ranks: Sequence[int]) -> ProcessGroup:
    """The process group of these ranks, ascending; made at the first call, which all of them have to make."""
    world = torch.distributed.group.WORLD
    assert world is not None  # somebody made the mesh that the ranks are of
    return _process_group_of(world, tuple(global_ranks))


@functools.lru_cache(maxsize=256)
def _process_group_of(world: ProcessGroup, global_ranks: tuple[int, ...]) -> ProcessGroup:
    if len(global_ranks) == torch.distributed.get_world_size(world):
        return world
    made: ProcessGroup = torch.distributed.new_group(list(global_ranks), use_local_synchronization=True)
    return made

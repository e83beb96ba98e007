"""What this library says each rank holds of a DTensor, against what torch gives it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from hf_mhe.training.engines.dtensor.regions import holding
from hf_mhe.training.engines.plan import Cost, make_plan, operations, operations_by_rows

RANKS = 4
SHAPES = [(33, 8), (8, 33), (5, 6, 7), (3, 2), (16, 16)]
ONE_AXIS: list[Sequence[Placement]] = [[Replicate()], [Shard(0)], [Shard(1)], [Shard(-1)]]
TWO_AXES: list[Sequence[Placement]] = [
    *itertools.product([Replicate(), Shard(0), Shard(1)], repeat=2),
    [_StridedShard(0, split_factor=2), Shard(0)],  # FSDP2 over tensor parallel
]
PACKED: list[Sequence[Placement]] = [[_StridedShard(0, split_factor=2)], [_StridedShard(1, split_factor=2)]]


@pytest.mark.parametrize("rank", range(RANKS))
def test_every_rank_holds_what_torch_gives_it(rank: int) -> None:
    """A rank would send the wrong rows, or write the gradient of others to its own."""
    distributed = torch.distributed
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    try:
        cases = [
            *itertools.product([(RANKS,)], ONE_AXIS, SHAPES),
            *itertools.product([(2, 2), (1, 4), (4, 1)], TWO_AXES[:-1], SHAPES),
            *itertools.product([(2, 2)], TWO_AXES[-1:], SHAPES),
            *itertools.product([(RANKS,)], PACKED, [(16, 8), (8, 16), (24, 24)]),
        ]
        for sizes, placements, shape in cases:
            mesh = distributed.init_device_mesh("cpu", sizes)
            whole = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
            tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            held = holding(tensor)
            local, region = tensor.to_local(), held.regions[rank]
            assert torch.equal(region.take(whole), local), (sizes, placements, shape)
            # The regions of one copy put the tensor together again, each element once.
            copy = [held.regions[k] for k in range(RANKS) if held.copy[k] == held.copy[rank]]
            again = torch.full(shape, -1.0)
            for part in copy:
                part.put(again, part.take(whole))
            assert torch.equal(again, whole), (sizes, placements, shape)
            assert sum(torch.Size(part.shape).numel() for part in copy) == whole.numel()
    finally:
        distributed.destroy_process_group()


def costs(*shapes: tuple[int, int], ranks: int) -> tuple[Cost, ...]:
    return tuple(Cost(operations(n, d), operations_by_rows(-(-n // ranks), n, d), 4 * n * d) for n, d in shapes)


def test_a_weight_that_outweighs_the_rest_is_walked_by_rows() -> None:
    """One rank would walk a vocabulary alone while the others wait."""
    *layers, head = costs(*[(64, 64)] * 8, (4096, 64), ranks=4)
    assert make_plan((*layers, head), 4)[-1] is None
    assert make_plan((*layers, head._replace(by_rows=None)), 4)[-1] is not None  # it is not cut by rows
    owners = make_plan(tuple(layers), 4)
    assert sorted(owner for owner in owners if owner is not None) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_operations_are_not_saved_at_any_price() -> None:
    """Ranks without a weight of their own would rather wait than have every rank fetch every weight."""
    layers = costs(*[(8192, 8192)] * 300, ranks=512)
    whole, by_rows = layers[0].whole, sum(each.by_rows or 0 for each in layers)
    assert by_rows < whole  # of the busiest rank
    assert None not in make_plan(layers, 512)
    assert set(make_plan(tuple(each._replace(size=0) for each in layers), 512)) == {None}

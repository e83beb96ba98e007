"""Which engine a model is found to be on, and that it is asked for the right part of the work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from hf_mhe import MHEConfig, MHERegularizer
from hf_mhe.training.engines.ddp import DDP
from hf_mhe.training.engines.dtensor.dtensors import DTensors
from hf_mhe.training.engines.engine_of import engine_of
from hf_mhe.training.engines.one_process import OneProcess
from hf_mhe.training.engines.plan import GroupShape, Workload
from tests.training.cases import CASES, make_tiny, slow_penalty

RANK, RANKS = 1, 3


@pytest.fixture
def one_rank() -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.fixture
def rank_of_three() -> Iterator[None]:
    """As rank 1 of three, whose collectives bring nothing."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=RANKS)
    yield
    torch.distributed.destroy_process_group()


def test_whole_parameters_are_those_of_one_process(one_rank: DeviceMesh) -> None:
    """A process group alone would be taken for sharding."""
    regularizer = MHERegularizer(make_tiny())
    assert type(regularizer.find_engine()) is OneProcess


def test_one_sharded_weight_among_whole_ones(one_rank: DeviceMesh) -> None:
    """The whole layers of a model that is sharded in part would be left out, or counted once a rank."""
    model = make_tiny().double()
    expected = slow_penalty(CASES["tiny"].terms(model, 0.7, 0.3), 2.0)
    regularizer = MHERegularizer(model, MHEConfig(hidden_weight=0.7, output_weight=0.3))
    model.middle.weight = nn.Parameter(distribute_tensor(model.middle.weight.detach(), one_rank, [Shard(0)]))
    engine = regularizer.find_engine()
    assert type(engine) is DTensors
    shapes = {shape.n: shape for shape in engine.workload(regularizer.groups).groups}
    n, d = model.middle.weight.shape
    assert shapes.pop(n) == GroupShape(n, d, rows=n, size=8 * n * d)
    assert all(shape == GroupShape(shape.n, shape.d) for shape in shapes.values())
    torch.testing.assert_close(regularizer.penalty(), expected, rtol=1e-10, atol=0)
    assert engine_of(model, regularizer.groups[:0]).micro_batch(sync=False).is_due is False


def test_fsdp2_is_seen_while_whole_parameters_stand_in_for_the_shards(one_rank: DeviceMesh) -> None:
    """Between forward and backward pass every rank would take the model for one process's own."""
    model = make_tiny()
    regularizer = MHERegularizer(model)
    fully_shard(model, mesh=one_rank, reshard_after_forward=False)
    model(torch.ones(2, 6))
    assert not any(isinstance(tensor, torch.distributed.tensor.DTensor) for tensor in model.parameters())
    assert type(regularizer.find_engine()) is DTensors


def test_under_ddp_work_is_divided_once_after_a_forward_pass(rank_of_three: None) -> None:
    """A second penalty of one forward pass would count the share of one rank, which no reduction completes."""
    model = make_tiny()
    ddp = DistributedDataParallel(model)
    divided, whole = MHERegularizer(ddp), MHERegularizer(ddp, divide_work=False)
    assert type(divided.find_engine()) is OneProcess  # no forward pass yet
    ddp(torch.ones(2, 6))
    engine = divided.find_engine()
    assert type(engine) is DDP
    shapes = tuple(GroupShape(group.n, group.d) for group in divided.groups)
    assert engine.workload(divided.groups) == Workload(shapes, RANKS)
    assert type(whole.find_engine()) is OneProcess
    everything = divided.evaluate()  # is not the step's
    assert type(divided.find_engine()) is DDP
    terms = divided._exact(divided.groups)
    share = engine.evaluate_due(terms)
    assert share.ranks == RANKS
    assert sum(bool(energy) for energy in share.energies) == 1  # three groups on three ranks
    torch.testing.assert_close(share.energies.sum(), RANKS * everything.energies[share.energies != 0].sum())
    assert type(divided.find_engine()) is OneProcess
    with ddp.no_sync():
        ddp(torch.ones(2, 6))
        assert type(divided.find_engine()) is OneProcess

"""Gradients of the penalty on DTensors that are handed over without a copy are still each parameter's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.utils import parametrize

from hf_mhe import MHEConfig, MHERegularizer


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


class PlusAnother(nn.Module):
    """The weight is the sum of two, to both of which autograd gives one and the same tensor as gradient."""

    def __init__(self, other: Tensor) -> None:
        super().__init__()
        self.other = nn.Parameter(other)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.other


def make(summed: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.MultiheadAttention(4, 2)).double()  # q, k, v are cut from one weight
    if summed:
        parametrize.register_parametrization(model[0], "weight", PlusAnother(torch.randn(5, 6, dtype=torch.float64)))
    return model


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for module in list(model.modules()):
        for name, value in list(module.named_parameters(recurse=False)):
            module._parameters[name] = nn.Parameter(distribute_tensor(value.detach(), mesh, [Shard(0)]))
    return model


def gradients(model: nn.Module, times: int) -> dict[str, Tensor]:
    penalty = MHERegularizer(model, MHEConfig(hidden_weight=0.7, output_weight=0.0)).penalty()
    for _ in range(times):
        (3 * penalty).backward(retain_graph=True)
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_each_backward_pass_adds_the_gradient_once(mesh: DeviceMesh, summed: bool, times: int) -> None:
    """A gradient scaled in place for one parameter, or in one backward pass, would be scaled again for the next."""
    whole, sharded = gradients(make(summed), times), gradients(shard(make(summed), mesh), times)
    assert whole.keys() == sharded.keys()
    assert len(whole) >= 3
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], rtol=1e-12, atol=1e-15)

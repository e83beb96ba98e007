"""Three penalties under a budget in this world of processes: the gradient that each parameter ends up with.

torchrun --standalone --nproc_per_node 2 -m tests.engines.budget_worker OUTPUT.pt ENGINE[:OBJECTIVE]...
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_mhe import MHEConfig, MHERegularizer
from tests.engines.launch import leave_processes

SHAPES = [(24, 6), (24, 6), (40, 6), (24, 40), (64, 24)]
SHARES = {"ddp": 0.04, "fsdp2": 0.04, "deepspeed": 0.5}  # the last computes no samples
STEPS = 3
RATE = 0.1


def config(engine: str, objective: Any = "energy") -> MHEConfig:
    share = SHARES[engine] if objective == "energy" else 1.0  # nothing else is computed of a sample
    return MHEConfig(hidden_weight=0.7, budget=share, objective=objective)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d, n, bias=False) for n, d in SHAPES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x[:, : layer.in_features]).sum() for layer in self.layers]).sum()


def make() -> Chain:
    torch.manual_seed(0)
    return Chain().double()


def batch(rank: int, step: int) -> Tensor:
    return torch.ones(4 + 2 * rank + step, 64, dtype=torch.float64)


def run(engine: str, *objective: str) -> list[list[Tensor]]:
    """Step by step, the whole gradient of each parameter; the task has none."""
    model: nn.Module = make()
    if engine == "ddp":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    regularizer = MHERegularizer(model, config(engine, *objective), seed=7)
    gradients = []
    for step in range(STEPS):
        regularizer(0 * model(batch(torch.distributed.get_rank(), step))).backward()
        found = [p.grad for p in model.parameters()]
        gradients.append([g.full_tensor() if isinstance(g, DTensor) else g.clone() for g in found])
        model.zero_grad()
    assert regularizer.budget is not None
    return [*gradients, [torch.tensor(regularizer.budget.step_operations, dtype=torch.float64)]]


def run_deepspeed(*objective: str) -> list[list[Tensor]]:
    """The same under DeepSpeed's ZeRO 2, in float32, and from where the steps of SGD before have led."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    model = make().float()
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,  # or it clips at 1
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    regularizer = MHERegularizer(engine, config("deepspeed", *objective), seed=7)
    gradients = []
    for step in range(STEPS):
        before = [p.detach().clone() for p in model.parameters()]
        engine.backward(regularizer(0 * engine(batch(torch.distributed.get_rank(), step).float())))
        engine.step()
        gradients.append([(a - p.detach()) / RATE for a, p in zip(before, model.parameters(), strict=True)])
    assert regularizer.budget is not None
    engine.destroy()
    return [*gradients, [torch.tensor(regularizer.budget.step_operations, dtype=torch.float64)]]


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    results = {}
    for cell in sys.argv[2:]:
        engine, *objective = cell.split(":")
        results[cell] = run_deepspeed(*objective) if engine == "deepspeed" else run(engine, *objective)
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

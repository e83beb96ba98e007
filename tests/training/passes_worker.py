"""Steps of two backward passes in several processes: what the penalty adds to the parameters.

torchrun --standalone --nproc_per_node 2 -m tests.training.passes_worker OUTPUT.pt ENGINE...
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_mhe import MHEError, MHERegularizer
from tests.engines.launch import leave_processes
from tests.training.cases import CASES, CONFIG, LEARNING_RATE

LARGER = 1.25
FLOWS = ("to None", "to zero", "added up")


def wrapped(engine: str, model: Any) -> Any:
    if engine == "ddp":
        return DistributedDataParallel(model)
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    return model


@torch.no_grad()
def scale(model: Any, by: float) -> None:
    for parameter in model.parameters():
        parameter.mul_(by)


def step(engine: str, flow: str, penalty: bool) -> dict[str, Tensor]:
    """Parameters after a step whose second pass is at weights that are larger."""
    inner: Any = CASES["tiny"].make().double().train()
    model = wrapped(engine, inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    regularizer = MHERegularizer(model, CONFIG)
    rows = CASES["tiny"].data(8, seed=1 + torch.distributed.get_rank())
    features = torch.stack([row["features"] for row in rows]).double()
    labels = torch.tensor([row["labels"] for row in rows])
    for last in (False, True):
        if last and flow != "added up":
            optimizer.zero_grad(set_to_none=flow == "to None")
        if last:
            scale(model, LARGER)
        loss = model(features, labels).loss
        (regularizer(loss, sync=True) if penalty else loss).backward()
    scale(model, 1 / LARGER)
    optimizer.step()
    assert not penalty or regularizer.step == 1
    found = {name: parameter.detach() for name, parameter in inner.named_parameters()}
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in found.items()}


def refused() -> dict[str, Tensor]:
    """Whether a second penalty before a step of DeepSpeed's engine is refused, and one after it is not."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    model: Any = CASES["tiny"].make()
    settings = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    regularizer = MHERegularizer(engine, CONFIG)
    features, labels = torch.ones(4, 6), torch.zeros(4, dtype=torch.long)
    for _ in range(2):
        regularizer(engine(features, labels).loss)  # thrown away
        engine.backward(regularizer(engine(features, labels).loss))
        engine.step()
    assert regularizer.step == 2
    engine.backward(regularizer(engine(features, labels).loss))
    said = ""
    try:
        engine.backward(regularizer(engine(features, labels).loss))
    except MHEError as error:
        said = str(error)
    return {"refused": torch.tensor("before one step of DeepSpeed's engine" in said)}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    results: dict[str, dict[str, Tensor]] = {}
    for name in sys.argv[2:]:
        if name == "deepspeed":
            results[name] = refused()
            continue
        for flow in FLOWS:
            plain, regularized = step(name, flow, False), step(name, flow, True)
            results[f"{name} {flow}"] = {key: regularized[key] - plain[key] for key in plain}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

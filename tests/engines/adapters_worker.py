"""LoRA and DoRA on a small GPT-2, three SGD steps with the penalty: in one process, under DDP, under FSDP2."""

from __future__ import annotations

import os
import sys
from typing import Any

import peft
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_mhe import MHEConfig, MHERegularizer
from tests.engines.launch import leave_processes
from tests.training.cases import gpt2_data, make_gpt2

CELLS = [f"{engine}-{method}" for engine in ("ddp", "fsdp2") for method in ("lora", "dora")]


def train(engine: str, method: str, *, weight: float = 0.5) -> dict[str, Tensor]:
    """The parameters after training, whole, by their names in one process; each rank has an equal share of a batch."""
    config = peft.LoraConfig(
        target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, r=3, init_lora_weights=False, use_dora=method == "dora"
    )
    torch.manual_seed(0)
    inner: Any = peft.get_peft_model(make_gpt2().double(), config).double()
    model: Any = inner
    rank, ranks = 0, 1
    if engine != "one":
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if engine == "ddp":
        model = DistributedDataParallel(inner)
    elif engine == "fsdp2":
        for block in inner.base_model.model.transformer.h:
            fully_shard(block)
        fully_shard(inner)
    off = {"hidden_weight": 0.0, "output_weight": 0.0}
    regularizer = MHERegularizer(model, MHEConfig(hidden_weight=weight) if weight else MHEConfig(**off))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    tokens = torch.stack([example["input_ids"] for example in gpt2_data(8)])[rank::ranks]
    for _ in range(3):
        optimizer.zero_grad()
        regularizer(model(input_ids=tokens, labels=tokens).loss).backward()
        optimizer.step()
    named = inner.named_parameters()
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for name, p in named}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    torch.distributed.device_mesh.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    results = {cell: train(*cell.split("-")) for cell in CELLS}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

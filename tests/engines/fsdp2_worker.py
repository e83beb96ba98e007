"""FSDP2 as accelerate and Trainer set it up, in processes on CPU.

torchrun --standalone --nproc_per_node 2 -m tests.engines.fsdp2_worker OUTPUT.pt

Accelerate takes an FSDP plugin to mean DDP where there is no GPU (`AcceleratorState.__init__`). So it is told what it
decides for itself on a GPU, once it is there; everything that it does with the plugin from then on is its own.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from tests.engines.launch import leave_processes
from tests.training import worker


def as_on_a_gpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def make_accelerator(**options: Any) -> Accelerator:
    """With accumulation the weights come from one rank, and the layers are computed again in the backward pass."""
    several = options["gradient_accumulation_steps"] > 1
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="size_based_wrap",
        min_num_params=40,
        cpu_ram_efficient_loading=several,
        activation_checkpointing=several,
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, **options)
    as_on_a_gpu(accelerator, plugin)
    return accelerator


class ShardedTrainer(Trainer):
    """Trainer, told that it has GPUs; checks that the model came out sharded."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        as_on_a_gpu(self.accelerator, FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap"))
        self.is_fsdp_enabled = True

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        assert isinstance(model, FSDPModule)
        return super().training_step(model, *args, **kwargs)


def run(kind: str, penalty: bool) -> dict[str, Tensor]:
    face, name, accumulation = kind.split()
    if face == "trainer":
        return worker.by_trainer(name, penalty, int(accumulation), ShardedTrainer)
    return worker.by_accelerate(penalty, int(accumulation), name, make_accelerator=make_accelerator)


KINDS = ["trainer tiny 2", "trainer gpt2 2", "trainer unused 1", "accelerate before 2", "accelerate after 1"]

if __name__ == "__main__":
    results = {f"{kind} {penalty}": run(kind, penalty) for kind in KINDS for penalty in (False, True)}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

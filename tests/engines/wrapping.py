"""The zoo's model as each engine has it, and which part of the global batch a rank gets there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.engines.zoo import Zoo

LAYERS = ("attention", "conv", "transposed", "hidden", "normed", "back")

SHARDED = {
    "fsdp2": 2,  # each layer and the root
    "fsdp2-root": 2,  # one unit
    "fsdp2-kept": 2,  # not resharded after the forward pass
    "fsdp2-offloaded": 2,  # parameters, gradients and optimizer on the host, and what is saved for the backward pass
    "fsdp2-columns": 2,  # dimension 1 sharded where two ranks divide it evenly, as FSDP2 demands
    "fsdp2-bfloat16": 2,  # bfloat16 in forward and backward, float32 weights
    "fsdp2-ignored": 2,  # weight norm's magnitude left to each rank whole, its direction sharded
    "hsdp-1x2": 2,
    "hsdp-2x1": 2,
    "tp": 2,
    "fsdp2-nothing": 4,  # 5 rows on 4 ranks: 2, 2, 1 and none
    "hsdp": 4,
    "tp-fsdp2": 4,
}
"""Engines that shard parameters, and how many processes each is tried in."""


def wrap(model: Zoo, engine: str) -> nn.Module:
    """The model under `one`, an engine of `SHARDED`, or `ddp` and its variants: `ddp-unused` (find_unused_parameters),
    `ddp-static` (static_graph), `ddp-hook` (a communication hook, which may do anything), `ddp-whole` (work not
    divided), `ddp-offloaded` (what is saved for the backward pass is on the host).
    """
    if engine == "one":
        return model
    if engine.startswith("ddp"):
        options = {"ddp-unused": {"find_unused_parameters": True}, "ddp-static": {"static_graph": True}}
        ddp = DistributedDataParallel(model, **options.get(engine, {}))  # type: ignore[arg-type]
        if engine == "ddp-hook":
            ddp.register_comm_hook(None, allreduce_hook)
        return ddp
    world = torch.distributed.get_world_size()
    if engine == "tp":
        return tensor_parallel(model, make_mesh(tensor=world))
    if engine == "tp-fsdp2":
        mesh = make_mesh(data=world // 2, tensor=2)
        return shard(tensor_parallel(model, mesh["tensor"]), mesh["data"])
    if engine.startswith("hsdp"):
        copies = int(engine[5]) if "-" in engine else 2
        return shard(model, make_mesh(copies=copies, shards=world // copies))
    options: dict[str, dict[str, Any]] = {  # type: ignore[no-redef]
        "fsdp2-kept": {"reshard_after_forward": False},
        "fsdp2-offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
        "fsdp2-columns": {
            "shard_placement_fn": lambda p: Shard(1) if p.dim() > 1 and p.shape[1] % world == 0 else None
        },
        "fsdp2-bfloat16": {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)},
        "fsdp2-ignored": {"ignored_params": {model.normed.parametrizations.weight.original0}},  # type: ignore[union-attr]
    }
    return shard(model, make_mesh(shards=world), () if engine == "fsdp2-root" else LAYERS, **options.get(engine, {}))


def make_mesh(**axes: int) -> DeviceMesh:
    return torch.distributed.init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))


def shard(model: nn.Module, mesh: DeviceMesh, layers: tuple[str, ...] = LAYERS, **options: Any) -> nn.Module:
    for layer in layers:
        fully_shard(getattr(model, layer), mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def tensor_parallel(model: Zoo, mesh: DeviceMesh) -> Zoo:
    """Columns, rows, the vocabulary of a tied embedding, a weight cut by hand; the rest is whole on every rank."""
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "hidden": ColwiseParallel(output_layouts=Replicate()),
        "back": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)
    model.head.weight = model.embedding.weight
    model.unreached.weight = nn.Parameter(distribute_tensor(model.unreached.weight.detach(), mesh, [Shard(1)]))
    return model


def part_of_batch(engine: str) -> tuple[int, int]:
    """Which part of the global batch this rank trains on, and of how many: tensor parallel shares one."""
    if engine in ("one", "tp"):
        return 0, 1
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return (rank // 2, world // 2) if engine == "tp-fsdp2" else (rank, world)

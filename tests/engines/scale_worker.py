"""One exact penalty on FSDP2 shards in this world of processes: the operations and the bytes of every rank.

torchrun --standalone --nproc_per_node 2 -m tests.engines.scale_worker OUTPUT.json
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hf_mhe import MHERegularizer
from hf_mhe.training.engines import plan
from tests.engines.launch import leave_processes

MODELS = {
    "whole": [(1024, 48), (1024, 48), (2048, 16), (1031, 32)],
    "by rows too": [(1024, 48), (1024, 48), (4099, 64)],
}


class Traffic(TorchDispatchMode):
    """Adds up the bytes that collectives bring to this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.received: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._schema.name.partition("::")[2]
            ranks = torch.distributed.get_world_size()
            if name == "alltoall_base_":  # nothing goes from a rank to itself
                self._add(name, args[0].nbytes)
            elif name == "all_gather_into_tensor":
                self._add(name, out.nbytes * (ranks - 1) // ranks)
            elif name == "allreduce_":
                self._add(name, sum(tensor.nbytes for tensor in args[0]))
            elif name not in ("wait_tensor", "_wrap_tensor_autograd"):
                raise AssertionError(f"a collective that is not accounted for: {name}")
        return out

    def _add(self, name: str, count: int) -> None:
        self.received[name] = self.received.get(name, 0) + count


def fused(_added: Any, a: tuple[int, ...], b: tuple[int, ...], **_: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def count(shapes: Sequence[tuple[int, int]]) -> dict[str, int]:
    """This rank's operations, and the bytes that come to it, by collective."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(d, n, bias=False) for n, d in shapes))
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    regularizer = MHERegularizer(model)
    in_place = {torch.ops.aten.addmm_: fused, torch.ops.aten.baddbmm_: fused}  # which torch itself does not count
    with FlopCounterMode(display=False, custom_mapping=in_place) as operations, Traffic() as traffic:
        regularizer.penalty().backward()
    return {"operations": operations.get_total_flops(), **traffic.received}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    mine = {name: count(shapes) for name, shapes in MODELS.items() if name == "whole"}
    plan.OPERATIONS_PER_BYTE = 0  # or layers as small as these would never be walked by rows
    mine["by rows too"] = count(MODELS["by rows too"])
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    if int(os.environ["RANK"]) == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(everyone, file)
    leave_processes()

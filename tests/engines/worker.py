"""Three optimizer steps on a global batch, in whatever world this process is part of, for each cell named.

torchrun --standalone --nproc_per_node 2 -m tests.engines.worker OUTPUT.pt CELL...
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX, checkpoint_wrapper
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_mhe import MHEConfig, MHERegularizer
from hf_mhe.training.engines import plan
from tests.engines import zoo
from tests.engines.launch import leave_processes
from tests.engines.wrapping import part_of_batch, wrap

GLOBAL_BATCH, STEPS = 16, 3
CONFIG = MHEConfig(hidden_weight=0.7, output_weight=0.3, embedding_weight=0.5, output=["back"])
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Cell:
    """One training: how the model is wrapped (`wrapping.wrap`), and what is done with it.

    `once`: a single step. `copies`: of neurons that coincide, and that have next to no length. `objective`: what is
    minimized.
    """

    engine: str
    optimizer: str = "sgd"
    dtype: str = "float64"
    accumulation: int = 1
    bind: str = "after"
    clip: bool = False
    penalty: bool = True
    checkpointing: bool = False
    once: bool = False
    copies: bool = False
    objective: str = "energy"

    @property
    def name(self) -> str:
        return "/".join(str(getattr(self, field.name)) for field in fields(self))

    @staticmethod
    def of(name: str) -> Cell:
        engine, optimizer, dtype, accumulation, bind, *flags, objective = name.split("/")
        chosen = (flag == "True" for flag in flags)
        return Cell(engine, optimizer, dtype, int(accumulation), bind, *chosen, objective=objective)


def without_sync(model: nn.Module, micro: int, accumulation: int) -> contextlib.AbstractContextManager[Any]:
    last = micro == accumulation - 1
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
    return contextlib.nullcontext()


def run(cell: Cell) -> dict[str, Tensor]:
    """Whole parameters after three steps, and `penalty`: what each rank reported in each step, (ranks, steps)."""
    world = 1 if cell.engine == "one" else torch.distributed.get_world_size()
    steps = 1 if cell.once else STEPS
    index, parts = part_of_batch(cell.engine)
    inner = zoo.make(DTYPES[cell.dtype])
    if cell.copies:
        spoil(inner)
    if cell.checkpointing:  # within what FSDP2 wraps
        inner.attention = checkpoint_wrapper(inner.attention)
    divide = cell.engine != "ddp-whole"
    config = replace(CONFIG, objective=cell.objective)
    regularizer = MHERegularizer(inner, config, divide_work=divide) if cell.bind == "before" else None
    model = wrap(inner, cell.engine)
    regularizer = regularizer or MHERegularizer(model, config, divide_work=divide)
    parameters = list(model.parameters())
    # torch's loops over all parameters at once do not mix DTensors with plain tensors, as tensor parallel does.
    mixed = cell.engine.startswith("tp") or cell.engine == "fsdp2-ignored"
    optimizer = (
        torch.optim.SGD(parameters, lr=0.5, foreach=not mixed)
        if cell.optimizer == "sgd"
        else torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, foreach=not mixed)
    )
    reported = []
    for step in range(steps):
        whole = zoo.batch(step, GLOBAL_BATCH)
        for micro in range(cell.accumulation):
            mine = zoo.part(whole, index * cell.accumulation + micro, parts * cell.accumulation)
            last = micro == cell.accumulation - 1
            with without_sync(model, micro, cell.accumulation):
                with save_on_cpu() if "offloaded" in cell.engine else contextlib.nullcontext():
                    loss = model(**mine) / cell.accumulation
                    if cell.penalty:
                        total = regularizer(loss, sync=last)
                        if last:
                            reported.append((total - loss).detach().double())
                        loss = total
                loss.backward()
        if cell.clip:
            (clip if mixed else torch.nn.utils.clip_grad_norm_)(parameters, 0.3)
        optimizer.step()
        optimizer.zero_grad()
    result = {name: value.detach().clone() for name, value in whole_parameters(model)}
    penalties = torch.stack(reported) if reported else torch.zeros(steps, dtype=torch.float64)
    result["penalty"] = gathered(penalties, world)
    return result


def spoil(model: zoo.Zoo) -> None:
    """Copies within a rank's rows and beyond them, in full and half space, and rows that decayed."""
    with torch.no_grad():
        for weight in (model.embedding.weight, model.hidden.weight, model.back.weight, model.transposed.weight.T):
            weight[1] = weight[0]
            weight[-1] = weight[0]
            weight[-2] = -2 * weight[0]
            weight[2] *= 1e-25
            weight[-3] *= 1e-6


def clip(parameters: list[nn.Parameter], most: float) -> None:
    gradients = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
    norm = float(sum(g.square().sum() for g in gradients if g is not None)) ** 0.5
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(min(1.0, most / (norm + 1e-6)))


def whole_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    named = [(name.replace(_CHECKPOINT_PREFIX, ""), value) for name, value in inner.named_parameters()]
    return [(name, value.full_tensor() if isinstance(value, DTensor) else value) for name, value in named]


def gathered(values: Tensor, world: int) -> Tensor:
    if world == 1:
        return values.unsqueeze(0)
    everyone = [torch.empty_like(values) for _ in range(world)]
    torch.distributed.all_gather(everyone, values)
    return torch.stack(everyone)


if __name__ == "__main__":
    plan.OPERATIONS_PER_BYTE = 0  # or layers as small as these would never be walked by rows
    torch.distributed.init_process_group("gloo")
    results = {name: run(Cell.of(name)) for name in sys.argv[2:]}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

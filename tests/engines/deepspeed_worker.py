"""Three optimizer steps under DeepSpeed on a global batch, for each cell named; or of one process, without DeepSpeed.

torchrun --standalone --nproc_per_node 2 -m tests.engines.deepspeed_worker OUTPUT.pt CELL...
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe import MHEConfig, MHERegularizer
from tests.engines import zoo

GLOBAL_BATCH, STEPS, CLIP = 16, 3, 0.3
CONFIG = {"hidden_weight": 0.7, "output_weight": 0.3, "embedding_weight": 0.5, "output": ["back"]}
RECORD = ("mhe_loss", "mhe_mean_energy", "mhe_score")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32, "float16": torch.float32}


@dataclass(frozen=True)
class Cell:
    """One training.

    stage: of ZeRO, or None for one process without DeepSpeed.
    bind: the regularizer is made `before` deepspeed.initialize, or `after` for the engine.
    flags: `clip`; `offload` (the optimizer to the CPU); `params` (the parameters too); `frozen` (one layer);
        `persistent` (small parameters stay whole under ZeRO 3); `plain` (no penalty); `whole` (work not divided);
        `every` (the penalty at every second step); `init` (the model made under deepspeed.zero.Init); `overlap`
        (gradients reduced while the backward pass runs).
    """

    stage: int | None
    optimizer: str = "sgd"
    dtype: str = "float32"
    accumulation: int = 1
    bind: str = "after"
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "/".join(map(str, (*tuple(self.__dict__.values())[:-1], "-".join(self.flags))))

    @staticmethod
    def of(name: str) -> Cell:
        stage, optimizer, dtype, accumulation, bind, flags = name.split("/")
        return Cell(int(stage), optimizer, dtype, int(accumulation), bind, tuple(flags.split("-")) if flags else ())


def run(cell: Cell) -> dict[str, Tensor]:
    """Whole parameters after three steps; of each rank `penalty`, (ranks, steps), and `record`, (ranks, numbers)."""
    model = zoo.make(DTYPES[cell.dtype])
    if "frozen" in cell.flags:
        model.hidden.requires_grad_(False)
    config = MHEConfig(**CONFIG, every_n_steps=2 if "every" in cell.flags else 1)
    divide = "whole" not in cell.flags
    regularizer = MHERegularizer(model, config, divide_work=divide) if cell.bind == "before" else None
    trained, engine = (model, None) if cell.stage is None else (None, initialize(cell, model))
    regularizer = regularizer or MHERegularizer(engine or trained, config, divide_work=divide)
    optimizer = make_optimizer(cell, model) if engine is None else None
    world, rank = (1, 0) if engine is None else (torch.distributed.get_world_size(), torch.distributed.get_rank())
    reported = []
    for step in range(STEPS):
        batch = zoo.batch(step, GLOBAL_BATCH)
        for micro in range(cell.accumulation):
            mine = zoo.part(batch, rank * cell.accumulation + micro, world * cell.accumulation)
            last = micro == cell.accumulation - 1
            if engine is not None:
                loss = engine(**mine)
                total = loss if "plain" in cell.flags else regularizer(loss)
                scale = cell.accumulation
                engine.backward(total)
                engine.step()
            else:
                loss = model(**mine) / cell.accumulation
                total = loss if "plain" in cell.flags else regularizer(loss, sync=last)
                scale = 1
                total.backward()
            if last:
                reported.append((total - loss).item() / scale)
        if optimizer is not None:
            if "clip" in cell.flags:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    record = regularizer.logs()
    result = whole_parameters(model)
    result["penalty"] = everyone(reported, world)
    result["record"] = everyone([record[key] for key in RECORD if key in record], world)
    if engine is not None:
        engine.destroy()
    return result


def make_optimizer(cell: Cell, model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if cell.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=0.5)
    return torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)


def initialize(cell: Cell, model: nn.Module) -> Any:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    zero: dict[str, Any] = {"stage": cell.stage, "reduce_bucket_size": 120, "overlap_comm": "overlap" in cell.flags}
    zero["stage3_param_persistence_threshold"] = 40 if "persistent" in cell.flags else 0
    if "offload" in cell.flags:
        zero["offload_optimizer"] = {"device": "cpu"}
    if "params" in cell.flags:
        zero["offload_param"] = {"device": "cpu"}
    config = {
        "train_batch_size": GLOBAL_BATCH,
        "gradient_accumulation_steps": cell.accumulation,
        "gradient_clipping": CLIP if "clip" in cell.flags else 0.0,
        "bf16": {"enabled": cell.dtype == "bfloat16"},
        "fp16": {"enabled": cell.dtype == "float16", "initial_scale_power": 12},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    return deepspeed.initialize(model=model, optimizer=make_optimizer(cell, model), config=config)[0]


def whole_parameters(model: nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in named.values()):
        return {name: parameter.detach().clone() for name, parameter in named.items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(named.values())):
        return {name: parameter.detach().clone() for name, parameter in named.items()}


def everyone(values: list[float], world: int) -> Tensor:
    own = torch.tensor(values, dtype=torch.float64)
    if world == 1:
        return own[None]
    gathered = [torch.empty_like(own) for _ in range(world)]
    torch.distributed.all_gather(gathered, own)
    return torch.stack(gathered)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    results = {name: run(Cell.of(name)) for name in sys.argv[2:]}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

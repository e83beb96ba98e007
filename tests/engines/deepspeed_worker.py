"""Three optimizer steps under DeepSpeed on a global batch, for each cell named; or of one process, without DeepSpeed.

torchrun --standalone --nproc_per_node 2 -m tests.engines.deepspeed_worker OUTPUT.pt CELL...
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe import MHEConfig, MHERegularizer
from tests.engines import zoo
from tests.engines.launch import leave_processes

GLOBAL_BATCH, STEPS, CLIP = 16, 3, 0.3
CONFIG = {"hidden_weight": 0.7, "output_weight": 0.3, "embedding_weight": 0.5, "output": ["back"]}
RECORD = ("mhe_loss", "mhe_mean_energy", "mhe_score")
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Cell:
    """One training.

    stage: of ZeRO, or None for one process without DeepSpeed.
    bind: the regularizer is made `before` deepspeed.initialize, or `after` for the engine.
    flags: `clip`; `offload` (the optimizer to the CPU); `params` (the parameters too); `frozen` (one layer);
        `persistent` (small parameters stay whole under ZeRO 3); `plain` (no penalty); `whole` (work not divided);
        `every` (the penalty at every second step); `init` (the parameters partitioned by deepspeed.zero.Init before
        the engine is made); `overlap` (gradients reduced while the backward pass runs); `scattered` (each gradient
        where autograd put it, reduced by all-reduce); `sums` (gradients in bfloat16 summed in float32); `once` (a
        single step); `overflow` (the loss scale begins too large); `direct` (`loss.backward()` of torch);
        `unmanaged` (the loop says which micro-batch is the last); `nosync` (and keeps the others from being reduced);
        `lora` (two layers with adapters of peft, everything trained); `objective=...` (what is minimized).
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
    """Whole parameters after three steps, those that the optimizer has, where the model has them in half precision; of
    each rank `penalty`, (ranks, steps), and `record`, (ranks, numbers).
    """
    model = initial(cell)
    if "frozen" in cell.flags:
        model.hidden.requires_grad_(False)
    config = MHEConfig(**CONFIG, every_n_steps=2 if "every" in cell.flags else 1, objective=objective(cell))
    divide = "whole" not in cell.flags
    if "init" in cell.flags:
        import deepspeed

        deepspeed.zero.Init(module=model, config_dict_or_path=settings(cell))
    regularizer = MHERegularizer(model, config, divide_work=divide) if cell.bind == "before" else None
    trained, engine = (model, None) if cell.stage is None else (None, initialize(cell, model))
    regularizer = regularizer or MHERegularizer(engine or trained, config, divide_work=divide)
    optimizer = make_optimizer(cell, model) if engine is None else None
    world, rank = (1, 0) if engine is None else (torch.distributed.get_world_size(), torch.distributed.get_rank())
    reported = []
    steps = 1 if "once" in cell.flags else STEPS
    while len(reported) < steps:
        batch = zoo.batch(len(reported), GLOBAL_BATCH)
        skipped = engine.skipped_steps if engine is not None else 0
        before = whole_parameters(model, engine) if "overflow" in cell.flags else {}
        for micro in range(cell.accumulation):
            mine = zoo.part(batch, rank * cell.accumulation + micro, world * cell.accumulation)
            last = micro == cell.accumulation - 1
            if engine is not None:
                total, loss = micro_batch(cell, engine, mine, regularizer, last)
                scale = cell.accumulation
            else:
                loss = model(**mine) / cell.accumulation
                total = loss if "plain" in cell.flags else regularizer(loss, sync=last)
                scale = 1
                total.backward()
        if optimizer is not None:
            if "clip" in cell.flags:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
        if engine is not None and engine.skipped_steps > skipped:  # the same step again, with half the loss scale
            after = whole_parameters(model, engine)
            assert all(torch.equal(before[name], after[name]) for name in before)
        else:
            reported.append((total.double() - loss.double()).item() / scale)
    assert ("overflow" in cell.flags) == (engine is not None and engine.skipped_steps > 0)
    record = regularizer.logs()
    result = whole_parameters(model, engine)
    result["penalty"] = everyone(reported, world)
    result["record"] = everyone([record[key] for key in RECORD if key in record], world)
    if engine is not None:
        engine.destroy()
    return result


def objective(cell: Cell) -> Any:
    return next((flag.removeprefix("objective=") for flag in cell.flags if "=" in flag), "energy")


def micro_batch(
    cell: Cell, engine: Any, inputs: dict[str, Any], regularizer: MHERegularizer, last: bool
) -> tuple[Tensor, Tensor]:
    """The loss with the penalty and without, in one micro-batch."""
    by_hand = "nosync" in cell.flags
    with engine.no_sync() if by_hand and not last else contextlib.nullcontext():
        loss = engine(**inputs)
        told = {"sync": last} if "unmanaged" in cell.flags else {}
        if by_hand:
            loss = loss / cell.accumulation
        total = loss if "plain" in cell.flags else regularizer(loss, **told)
        total.backward() if "direct" in cell.flags else engine.backward(total)
    if last or not (by_hand or told):
        engine.step()
    return (cell.accumulation * total, cell.accumulation * loss) if by_hand else (total, loss)


def initial(cell: Cell) -> nn.Module:
    """The model as every training of a dtype begins; in float32, which DeepSpeed converts."""
    model = zoo.make(torch.float32)
    if "lora" in cell.flags:
        import peft

        adapters = peft.LoraConfig(target_modules=["hidden", "back"], r=3, init_lora_weights=False)
        peft.inject_adapter_in_model(adapters, model).requires_grad_(True)
    return model.to(HALF[cell.dtype]).float() if cell.dtype in HALF else model


def make_optimizer(cell: Cell, model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if cell.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=0.5)
    return torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)


def initialize(cell: Cell, model: nn.Module) -> Any:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    return deepspeed.initialize(model=model, optimizer=make_optimizer(cell, model), config=settings(cell))[0]


def settings(cell: Cell) -> dict[str, Any]:
    """DeepSpeed's config."""
    zero: dict[str, Any] = {"stage": cell.stage, "reduce_bucket_size": 120, "overlap_comm": "overlap" in cell.flags}
    zero["stage3_param_persistence_threshold"] = 40 if "persistent" in cell.flags else 0
    if "offload" in cell.flags:
        zero["offload_optimizer"] = {"device": "cpu"}
    if "params" in cell.flags:
        zero["offload_param"] = {"device": "cpu"}
    if "scattered" in cell.flags:
        zero.update(contiguous_gradients=False, reduce_scatter=False)
    power = 20 if "overflow" in cell.flags else 12
    config = {
        "train_batch_size": GLOBAL_BATCH,
        "gradient_accumulation_steps": 1 if "nosync" in cell.flags else cell.accumulation,
        "managed_gradient_accumulation": "unmanaged" not in cell.flags,
        "gradient_clipping": CLIP if "clip" in cell.flags else 0.0,
        "bf16": {"enabled": cell.dtype == "bfloat16", "immediate_grad_update": "sums" in cell.flags},
        "fp16": {"enabled": cell.dtype == "float16", "initial_scale_power": power, "hysteresis": 1},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if "sums" in cell.flags:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def whole_parameters(model: nn.Module, engine: Any) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    if all(parameter.dtype == torch.float32 for parameter in named.values()):
        if not any(hasattr(parameter, "ds_id") for parameter in named.values()):
            return {name: parameter.detach().clone() for name, parameter in named.items()}
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(named.values())):
            return {name: parameter.detach().clone() for name, parameter in named.items()}
    from deepspeed.utils import safe_get_full_fp32_param

    without_zero: dict[int, Tensor] = {}
    if engine.zero_optimization_stage() == 0:
        for halves, masters in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True):
            without_zero.update((id(half), master) for half, master in zip(halves, masters, strict=True))
    kept = {name: without_zero.get(id(value), safe_get_full_fp32_param(value)) for name, value in named.items()}
    return {name: value.detach().clone() for name, value in kept.items()}


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
    leave_processes()

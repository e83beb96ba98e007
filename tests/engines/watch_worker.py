"""A plain Trainer with EnergyCallback, in processes on CPU: what its history has on the first rank and on the last.

torchrun --standalone --nproc_per_node 2 -m tests.engines.watch_worker OUTPUT.pt ENGINE
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from hf_mhe import EnergyCallback
from tests.engines.launch import leave_processes
from tests.training import worker

ENGINES = ("ddp", "fsdp2", "zero 3")
NAMES = ("tiny", "gpt2")
STEPS = 5


def run(engine: str) -> dict[str, Tensor]:
    """By model and by value, the curve of `(steps, 2)`; also with ranks whose clocks would decide differently."""
    curves: dict[str, Tensor] = {}
    for name in NAMES:
        for limit in ("none", "of rank 0") if name == "tiny" else ("none",):
            for key, curve in watched(engine, name, limit).items():
                curves[f"{name} {limit} {key}"] = torch.tensor(curve, dtype=torch.float64)
    return curves


def watched(engine: str, name: str, limit: str) -> dict[str, list[tuple[float, float]]]:
    options, trainer_class = engine_options(engine)
    rank = int(os.environ.get("RANK", "0"))
    share = 1e-9 if limit == "of rank 0" and rank == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=worker.GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
            max_grad_norm=0.0,
            max_steps=STEPS,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=2,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            optim="sgd",
            learning_rate=worker.LEARNING_RATE,
            lr_scheduler_type="constant",
            **options,
        )
        model = worker.make(name).float()
        callback = EnergyCallback(2, share_of_time=share, log_groups=True)
        trainer = trainer_class(model, args, train_dataset=worker.data(name), callbacks=[callback])
        trainer.train()
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in trainer.state.log_history:
        for key in record if "mhe_spread" in record else ():
            if key.startswith("mhe_") and key != "mhe_share_of_time":
                curves.setdefault(key, []).append((record["step"], record[key]))
    return curves


def engine_options(engine: str) -> tuple[dict[str, Any], type[Trainer]]:
    if engine == "fsdp2":
        from tests.engines.fsdp2_worker import ShardedTrainer

        return {}, ShardedTrainer
    if engine.startswith("zero"):
        import deepspeed

        from tests.engines.deepspeed_faces_worker import settings

        deepspeed.init_distributed("gloo")
        return {"deepspeed": settings(int(engine.removeprefix("zero "))), "ddp_backend": "gloo"}, Trainer
    return {}, Trainer


if __name__ == "__main__":
    output, cell = sys.argv[1:]
    results = run(cell)
    if int(os.environ["RANK"]) == 0:
        torch.save({cell: results}, output)
    leave_processes()

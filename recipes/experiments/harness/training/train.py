"""One training with transformers' Trainer: the recipe is data, the arm is a Trainer class."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from harness.data.images import Rows
from harness.training.penalties import trainer_class
from hf_mhe import MHEError

LR_SCHEDULES = ("cosine", "steps", "constant")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, apart from the penalty.

    `schedule`: `"cosine"` to 0; `"steps"`, ÷ 10 at 47 %, 71 % and 88 % as the authors do; or `"constant"`. The rate
    rises along a line in the first `warmup` steps. Weight decay is on every parameter, as in the authors' code.
    """

    lr: float
    steps: int
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        if self.schedule not in LR_SCHEDULES or self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"no such schedule or optimizer: {self.schedule!r}, {self.optimizer!r}")


@dataclass
class Trained:
    """What a training left beside the model."""

    seconds: float
    cpu_seconds: float  # of this process, which another tenant of the machine does not lengthen
    log: list[dict[str, float]]  # Trainer's records, one per point of the curve
    curve: list[dict[str, float]]  # step and what `watch` returned there
    diverged: str | None  # why it stopped early


def train(
    model: PreTrainedModel,
    rows: Rows,
    recipe: Recipe,
    *,
    seed: int,
    penalty: Mapping[str, Any] | None = None,
    watch: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    watch_every: int | None = None,
    stop: int | None = None,
) -> Trained:
    """Train `model` in place on one thread (or one GPU); the same seed sees the same batches whatever the penalty.

    A penalty that is no longer finite ends the training: that is an outcome, and is recorded as one. `stop` ends it
    after so many steps of the recipe's, whose rates are as if it went on.

    Raises:
        ValueError: there are fewer rows than a batch has; the last batch is dropped, so that nothing would be trained.
    """
    if len(rows) < recipe.batch:
        raise ValueError(f"a batch of {recipe.batch} needs as many rows; got {len(rows)}")
    set_seed(seed)
    every = watch_every or recipe.steps
    watcher = _Watcher(watch, every, recipe.steps, stop)
    kind, keywords = trainer_class(penalty)
    optimizer = _optimizer(model, recipe)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = kind(
            model=model,
            args=_arguments(scratch, recipe, seed, every),
            train_dataset=rows,
            data_collator=Rows.together,
            optimizers=(optimizer, _schedule(optimizer, recipe)),
            callbacks=[watcher],
            **keywords,
        )
        trainer.remove_callback(PrinterCallback)
        diverged = None
        start, cpu = time.perf_counter(), time.process_time()
        try:
            trainer.train()
        except MHEError as error:
            if _is_finite(model) and "finite" not in str(error):
                raise
            diverged = str(error)
        seconds = time.perf_counter() - start - watcher.seconds
        cpu_seconds = time.process_time() - cpu - watcher.cpu_seconds
    if diverged is None and not _is_finite(model):
        diverged = "a parameter is not finite"
    log = [{key: value for key, value in record.items() if key != "epoch"} for record in trainer.state.log_history]
    return Trained(seconds, cpu_seconds, [record for record in log if "loss" in record], watcher.curve, diverged)


def _arguments(scratch: str, recipe: Recipe, seed: int, every: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        dataloader_drop_last=True,
        max_grad_norm=0,
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=every,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


def _optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        # Fused: the same numbers, and a tenth to a quarter less time on small models.
        return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> torch.optim.lr_scheduler.LambdaLR:
    import math

    def share(step: int) -> float:
        done = step / recipe.steps
        decay = {
            "constant": 1.0,
            "cosine": (1 + math.cos(math.pi * min(done, 1.0))) / 2,
            "steps": 0.1 ** sum(done >= mark for mark in (0.47, 0.71, 0.88)),
        }[recipe.schedule]
        return decay * min(1.0, (step + 1) / (recipe.warmup + 1))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _is_finite(model: PreTrainedModel) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


class _Watcher(TrainerCallback):
    """Calls `watch` every so many steps and at the end, and counts the time that this takes; ends a training early."""

    def __init__(
        self, watch: Callable[[PreTrainedModel], dict[str, float]] | None, every: int, last: int, stop: int | None
    ) -> None:
        self.watch, self.every, self.last, self.stop = watch, every, last, stop
        self.curve: list[dict[str, float]] = []
        self.seconds = self.cpu_seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.stop:
            control.should_training_stop = True
        if self.watch is None or (state.global_step % self.every and state.global_step != self.last):
            return
        start, cpu = time.perf_counter(), time.process_time()
        self.curve.append({"step": state.global_step, **self.watch(model)})
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu

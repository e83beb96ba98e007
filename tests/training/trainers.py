"""Trainings with Trainer that tests share: settings, one optimizer step with the penalty and without, records."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_mhe import MHEConfig, with_mhe
from tests.training.cases import ALL_CASES, HIDDEN, LEARNING_RATE, OUTPUT, starting_gradient


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "max_grad_norm": 0.0,
        "num_train_epochs": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return TrainingArguments(**{**settings, **changes})


def logged_arguments(folder: Path, kind: type[TrainingArguments] = TrainingArguments, **changes: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "num_train_epochs": 1,
    }
    return kind(**{**settings, **changes})


def train(trainer_class: type[Trainer], model: nn.Module, args: TrainingArguments, **keywords: Any) -> Trainer:
    """Train with plain SGD; `steps_at_rest` first optimizer steps leave the weights where they are."""
    resting = keywords.pop("steps_at_rest", 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step >= resting))
    trainer = trainer_class(model, args, optimizers=(optimizer, schedule), **keywords)
    trainer.train()
    return trainer


def records(trainer: Trainer) -> list[dict[str, float]]:
    return [record for record in trainer.state.log_history if "loss" in record]


def summed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    loss = nn.functional.cross_entropy(outputs.logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return loss / num_items_in_batch


def config_of(name: str, **changes: Any) -> MHEConfig:
    patterns = {"output": "head"} if name == "plain" else {}
    return MHEConfig(**{"hidden_weight": HIDDEN, "output_weight": OUTPUT, **patterns, **changes})


def difference(plain: nn.Module, regularized: nn.Module) -> dict[str, Tensor]:
    before = dict(plain.named_parameters())
    return {key: (after - before[key]).detach() for key, after in regularized.named_parameters()}


def by_formula(name: str, times: float = 1.0) -> dict[str, Tensor]:
    return {key: -LEARNING_RATE * times * value for key, value in starting_gradient(name, HIDDEN, OUTPUT).items()}


def contribution(
    name: str,
    folder: Path,
    *,
    base: type[Trainer] = Trainer,
    dtype: torch.dtype = torch.float64,
    data: Any = None,
    config: MHEConfig | None = None,
    keywords: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Tensor]:
    """Parameters after a training of `base` with MHE, minus parameters after the same training of `base`."""
    case, keywords = ALL_CASES[name], keywords or {}
    resting = changes.pop("steps_at_rest", 0)
    models = case.make().to(dtype), case.make().to(dtype)
    for model, mhe in zip(models, ({}, {"mhe_config": config or config_of(name)}), strict=True):
        cls = with_mhe(base) if mhe else base
        args = arguments(folder, **copy.deepcopy(changes))  # Trainer writes into accelerator_config
        train(cls, model, args, train_dataset=data or case.data(16), steps_at_rest=resting, **keywords, **mhe)
    return difference(*models)

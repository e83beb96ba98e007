"""Three steps of SGD in whatever world this process is part of; as a program, under torchrun, it saves what they did.

torchrun --standalone --nproc_per_node 2 -m tests.training.worker OUTPUT.pt
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hf_mhe import MHEConfig, MHERegularizer, with_mhe
from tests.engines.launch import leave_processes
from tests.training.cases import CASES, TinyClassifier, make_tiny, tiny_data

GLOBAL_BATCH, STEPS, LEARNING_RATE = 16, 3, 0.5
CONFIG = MHEConfig(hidden_weight=0.7, output_weight=0.3)


class WithUnusedLayer(TinyClassifier):
    """A layer that the forward pass does not reach: DDP, as Trainer starts it, looks for such parameters."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.unused = nn.Linear(5, 4)
        self.post_init()


def make(name: str) -> Any:
    if name == "unused":
        torch.manual_seed(0)
        return WithUnusedLayer(make_tiny().config)
    if name == "loaded":
        made = CASES["gpt2"].make()
        with tempfile.TemporaryDirectory() as folder:
            made.config.save_pretrained(folder)
            save_model(made, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
            return type(made).from_pretrained(folder)
    return CASES[name].make()


def data(name: str) -> list[dict[str, Any]]:
    if name == "unused":
        return tiny_data(GLOBAL_BATCH * STEPS)
    return CASES["gpt2" if name == "loaded" else name].data(GLOBAL_BATCH * STEPS)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters, those that are sharded put together, by the names without checkpointing's wrapper."""
    named = ((name.replace(_CHECKPOINT_PREFIX, ""), value.detach()) for name, value in model.named_parameters())
    return {name: value.full_tensor() if isinstance(value, DTensor) else value.clone() for name, value in named}


Whole = Callable[[nn.Module], dict[str, Tensor]]
on_cpu = functools.partial(Accelerator, cpu=True)


def by_trainer(
    name: str,
    penalty: bool,
    accumulation: int,
    trainer_class: type[Trainer] = Trainer,
    dtype: torch.dtype = torch.float64,
    whole: Whole = whole,
    **options: Any,
) -> dict[str, Tensor]:
    """Parameters after three optimizer steps of Trainer or MHETrainer, and the penalties in its log."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=GLOBAL_BATCH // (world * accumulation),
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            max_steps=STEPS,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="steps",
            logging_steps=2,  # of three: what is logged is a mean over steps, and over one
            disable_tqdm=True,
            dataloader_pin_memory=False,
            optim="sgd",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            **options,
        )
        model = make(name).to(dtype)  # after the arguments, by which transformers decides how to load
        keywords: dict[str, Any] = {"train_dataset": data(name), **({"mhe_config": CONFIG} if penalty else {})}
        trainer = (with_mhe(trainer_class) if penalty else trainer_class)(model, args, **keywords)
        trainer.train()
    logged = [record["mhe_loss"] for record in trainer.state.log_history if "mhe_loss" in record]
    return {**whole(model), "logged": torch.tensor(logged or [0.0], dtype=torch.float64)}


def by_accelerate(
    penalty: bool,
    accumulation: int,
    bind: str,
    count: int = GLOBAL_BATCH * STEPS,
    make_accelerator: Callable[..., Accelerator] = on_cpu,
    dtype: torch.dtype = torch.float64,
    whole: Whole = whole,
) -> dict[str, Tensor]:
    """Parameters after one pass of a hand-written loop over the data; the last accumulation may be short."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator = make_accelerator(gradient_accumulation_steps=accumulation)
    model: Any = make_tiny().to(dtype)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    batch = GLOBAL_BATCH // (accelerator.num_processes * accumulation)
    loader: Any = DataLoader(tiny_data(count), batch_size=batch)  # type: ignore[arg-type]
    regularizer = MHERegularizer(model, CONFIG) if bind == "before" else None
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    regularizer = regularizer or MHERegularizer(model, CONFIG)
    model.train()
    for inputs in loader:
        with accelerator.accumulate(model):
            loss = model(**inputs).loss
            accelerator.backward(regularizer(loss) if penalty else loss)
            optimizer.step()
            optimizer.zero_grad()
    return whole(accelerator.unwrap_model(model))


RUNS = {
    **{
        f"trainer {name} {accumulation} {penalty}": (by_trainer, (name, penalty, accumulation))
        for name, accumulation in (("tiny", 2), ("gpt2", 2), ("unused", 1))
        for penalty in (False, True)
    },
    **{
        f"accelerate {bind} {accumulation} {penalty}": (by_accelerate, (penalty, accumulation, bind))
        for bind, accumulation in (("before", 2), ("after", 1))
        for penalty in (False, True)
    },
}


def run(name: str) -> dict[str, Tensor]:
    function, arguments = RUNS[name]
    return function(*arguments)


if __name__ == "__main__":
    results = {name: run(name) for name in (sys.argv[2:] or RUNS)}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

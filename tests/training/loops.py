"""Hand-written loops with accelerate that tests share."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor
from torch.utils.data import DataLoader

from hf_mhe import MHEConfig, MHERegularizer
from tests.training.cases import ALL_CASES, CONFIG, LEARNING_RATE


def forget_accelerate() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def loop(
    name: str,
    penalty: bool,
    count: int,
    batch: int,
    accumulation: int,
    step: int,
    dtype: torch.dtype = torch.float64,
    config: MHEConfig = CONFIG,
) -> dict[str, Tensor]:
    """Parameters after a loop with `accelerator.accumulate` in which only optimizer step number `step` moves them."""
    forget_accelerate()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    case = ALL_CASES[name]
    model: Any = case.make().to(dtype)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loader: Any = DataLoader(case.data(count), batch_size=batch)
    regularizer = MHERegularizer(model, config)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = 0
    model.train()
    for inputs in loader:
        with accelerator.accumulate(model):
            loss = model(**inputs)["loss"]
            accelerator.backward(regularizer(loss) if penalty else loss)
            if accelerator.sync_gradients:
                optimizer.param_groups[0]["lr"] = LEARNING_RATE if steps == step else 0.0
                steps += 1
            optimizer.step()
            optimizer.zero_grad()
    assert steps > step
    return {key: value.detach() for key, value in model.named_parameters()}

"""What one optimizer step of MHETrainer does to the parameters, beyond the same step without the penalty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_mhe import MHEConfig, MHETrainer, with_mhe
from tests.training.cases import (
    CASES,
    CONFIG,
    HIDDEN,
    LEARNING_RATE,
    OUTPUT,
    relative_difference,
    starting_gradient,
)
from tests.training.trainers import arguments, summed_loss, train

# examples, per device, accumulation, optimizer steps before the one that counts
SPLITS = {
    "1x16": (16, 16, 1, 0),
    "2x8": (16, 8, 2, 0),
    "4x4": (16, 4, 4, 0),
    "16x1": (16, 1, 16, 0),
    "ragged batch": (13, 4, 4, 0),
    "last accumulation of 1 in 3": (13, 4, 3, 1),
    "last accumulation of 3 in 4": (13, 2, 4, 1),
}


PRECISIONS = [
    *((split, torch.float64, 1e-9) for split in SPLITS),
    *((split, torch.float32, 1e-3) for split in ("1x16", "4x4", "last accumulation of 3 in 4")),
]


@pytest.mark.story
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("feature", ["compute_loss_func", "label_smoothing", "own_compute_loss", "pre_scaled"])
def test_step_is_the_same_whatever_scales_the_loss(name: str, feature: str, tmp_path: Path) -> None:
    """A user's loss function, label smoothing or a Trainer subclass would change what lambda means."""
    case = CASES[name]
    args = arguments(
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        label_smoothing_factor=0.1 if feature == "label_smoothing" else 0.0,
    )

    class Scaled(Trainer):
        loss_is_scaled_for_ga = True if feature == "pre_scaled" else None

        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            return (3 * loss, outputs) if return_outputs else 3 * loss

    base = Scaled if feature in ("own_compute_loss", "pre_scaled") else Trainer
    keywords = {"compute_loss_func": summed_loss} if feature == "compute_loss_func" else {}
    data, plain, regularized = case.data(16), case.make().double(), case.make().double()
    train(base, plain, args, train_dataset=data, **keywords)
    train(with_mhe(base), regularized, args, train_dataset=data, mhe_config=CONFIG, **keywords)
    before = dict(plain.named_parameters())
    found = {key: (after - before[key]).detach() for key, after in regularized.named_parameters()}
    gradient = starting_gradient(name, HIDDEN, OUTPUT)
    assert relative_difference(found, {key: -LEARNING_RATE * value for key, value in gradient.items()}) < 1e-9


@pytest.mark.slow
def test_all_weights_zero_trains_as_trainer(tmp_path: Path) -> None:
    """A sweep over lambda would have no baseline in it."""
    case = CASES["tiny"]
    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    off = MHEConfig(hidden_weight=0.0, output_weight=0.0)
    plain, switched_off = case.make(), case.make()
    train(Trainer, plain, args, train_dataset=case.data(16))
    train(MHETrainer, switched_off, args, train_dataset=case.data(16), mhe_config=off)
    for before, after in zip(plain.parameters(), switched_off.parameters(), strict=True):
        assert torch.equal(before, after)

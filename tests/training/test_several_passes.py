"""A step of several backward passes in Trainer: the optimizer gets the penalty once, or nothing is done."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_mhe import MHEError, MHERegularizer, MHETrainer, with_mhe
from tests.training.cases import CONFIG, make_tiny, relative_difference, tiny_data
from tests.training.loops import forget_accelerate
from tests.training.passes import CASE, ONCE, difference, perturb, perturbed_penalty
from tests.training.trainers import arguments, train


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def sharpness(set_to_none: bool, perturbed: bool) -> type[Trainer]:
    class Sharpness(Trainer):
        """The gradient of the second pass, at other weights, is what the optimizer gets."""

        def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            super().training_step(model, dict(inputs), num_items_in_batch)
            if self.accelerator.sync_gradients:
                model.zero_grad(set_to_none=set_to_none)
            if perturbed:
                perturb(model, 1.0)
            loss = super().training_step(model, inputs, num_items_in_batch)
            if perturbed:
                perturb(model, -1.0)
            return loss

    return Sharpness


@pytest.mark.story
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("perturbed", [False, True])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_sharpness_aware_trainer(set_to_none: bool, perturbed: bool, accumulation: int, tmp_path: Path) -> None:
    """The penalty would ride on the pass whose gradient is thrown away: a number in the log, and no effect."""
    base = sharpness(set_to_none, perturbed)
    plain, regularized = CASE.make().double(), CASE.make().double()
    args = {"per_device_train_batch_size": 16 // accumulation, "gradient_accumulation_steps": accumulation}
    train(base, plain, arguments(tmp_path, **args), train_dataset=CASE.data(16))
    args |= {"logging_strategy": "steps", "logging_steps": 1}
    trainer = train(
        with_mhe(base), regularized, arguments(tmp_path, **args), train_dataset=CASE.data(16), mhe_config=CONFIG
    )
    expected = perturbed_penalty() if perturbed else ONCE
    assert relative_difference(difference(plain, regularized), expected) < 1e-9
    model = CASE.make().double()
    if perturbed:
        perturb(model, 1.0)
    record = trainer.state.log_history[0]
    assert record["mhe_loss"] == pytest.approx(MHERegularizer(model, CONFIG).penalty().item(), rel=1e-9)
    assert trainer.mhe_regularizer.step == 1


class TwoLosses(Trainer):
    """Two calls of `accelerator.backward` in one step; between them nothing, or the gradients are cleared."""

    cleared: tuple[str, ...] = ()

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        for factor in (1.0, 0.5):
            loss = factor * self.compute_loss(model, inputs)
            self.accelerator.backward(loss)
            if factor == 1.0:
                for name, parameter in model.named_parameters():
                    if name.startswith(self.cleared):
                        parameter.grad = None
        return loss.detach()


@pytest.mark.slow
@pytest.mark.parametrize("cleared", [(), ("",)], ids=["added up", "cleared"])
def test_several_losses_of_a_trainer(cleared: tuple[str, ...], tmp_path: Path) -> None:
    """The penalty would count twice, or be cleared with the first loss."""

    class Cleared(TwoLosses):
        pass

    Cleared.cleared = cleared
    plain, regularized = CASE.make().double(), CASE.make().double()
    args = arguments(tmp_path, per_device_train_batch_size=16)
    train(Cleared, plain, args, train_dataset=CASE.data(16))
    train(with_mhe(Cleared), regularized, args, train_dataset=CASE.data(16), mhe_config=CONFIG)
    assert relative_difference(difference(plain, regularized), ONCE) < 1e-9


def test_gradients_cleared_in_part_are_refused(tmp_path: Path) -> None:
    """With one optimizer for each of two networks, the one would get the penalty twice or the other not at all."""

    class InPart(TwoLosses):
        cleared = ("body",)

    trainer = with_mhe(InPart)(make_tiny(), arguments(tmp_path), train_dataset=tiny_data(8), mhe_config=CONFIG)
    with pytest.raises(MHEError, match=r"in part: of 3 parameters .* those of 1 were cleared.*include"):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_last_pass_without_the_penalty_is_refused(set_to_none: bool, tmp_path: Path) -> None:
    """The log would have a penalty that no parameter has seen."""

    class Own(Trainer):
        def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            super().training_step(model, dict(inputs), num_items_in_batch)
            model.zero_grad(set_to_none=set_to_none)
            loss = self.compute_loss(model, inputs)
            loss.backward()
            return loss.detach()

    trainer = with_mhe(Own)(make_tiny(), arguments(tmp_path), train_dataset=tiny_data(8), mhe_config=CONFIG)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(MHEError, match=r"would not reach this optimizer step.*accelerator\.backward"):
        trainer.train()
    assert all(torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())


@pytest.mark.slow
def test_mhe_trainer_is_one_of_them(tmp_path: Path) -> None:
    """Somebody who starts from MHETrainer, and not from Trainer, would have no penalty."""

    class Sharpness(MHETrainer):
        def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            super().training_step(model, dict(inputs), num_items_in_batch)
            model.zero_grad()
            return super().training_step(model, inputs, num_items_in_batch)

    plain, regularized = CASE.make().double(), CASE.make().double()
    args = arguments(tmp_path, per_device_train_batch_size=16)
    train(Trainer, plain, args, train_dataset=CASE.data(16))
    train(Sharpness, regularized, args, train_dataset=CASE.data(16), mhe_config=CONFIG)
    assert relative_difference(difference(plain, regularized), ONCE) < 1e-9

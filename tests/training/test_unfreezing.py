"""Layers that are all frozen at first and opened later: the penalty begins then."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from hf_mhe import MHEConfig, MHERegularizer, MHETrainer
from tests.training.cases import CASES, CONFIG, HIDDEN, LEARNING_RATE, make_tiny, relative_difference, slow_energy
from tests.training.loops import forget_accelerate
from tests.training.trainers import arguments

LATER = r"no penalty until a layer is unfrozen.*all \d groups with a weight above 0 are frozen"
ROWS = CASES["tiny"].data(16)
FEATURES = torch.stack([row["features"] for row in ROWS]).double()
LABELS = torch.tensor([row["labels"] for row in ROWS])
HIDDEN_ONLY = MHEConfig(hidden_weight=HIDDEN, output_weight=0.0)


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def frozen_body() -> Any:
    """The usual start of fine-tuning: only the head trains."""
    model = make_tiny().double().train()
    model.body.requires_grad_(False)
    model.middle.requires_grad_(False)
    return model


def energy_gradient(model: Any, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    (gradient,) = torch.autograd.grad(HIDDEN * slow_energy(weight, space="half"), weight)
    return gradient


@pytest.mark.parametrize("late", ["in the optimizer from the start", "added to the optimizer"])
def test_a_loop_that_opens_layers(late: str) -> None:
    """Gradual unfreezing could not be combined with MHE."""
    ends = []
    for penalty in (False, True):
        model = frozen_body()
        if penalty:
            with pytest.warns(UserWarning, match=LATER) as caught:
                regularizer = MHERegularizer(model, HIDDEN_ONLY)
            assert len(caught) == 1
        added = late == "added to the optimizer"
        trained = model.classifier.parameters() if added else model.parameters()
        optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE)
        for step in range(3):
            if step == 2:
                model.middle.requires_grad_(True)
                if added:
                    optimizer.add_param_group({"params": list(model.middle.parameters())})
                opened = energy_gradient(model, "middle")
            optimizer.zero_grad()
            loss = model(FEATURES, LABELS).loss
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*frozen")  # said once
                (regularizer(loss) if penalty else loss).backward()
            optimizer.step()
            if penalty and step < 2:
                assert regularizer.groups == []
                assert regularizer.logs() == {}
                assert regularizer.penalty().item() == 0
        ends.append(model)
    found = {key: (value - ends[0].get_parameter(key)).detach() for key, value in ends[1].named_parameters()}
    expected = {key: torch.zeros_like(value) for key, value in found.items()}
    expected["middle.weight"] = -LEARNING_RATE * opened
    assert relative_difference(found, expected) < 1e-9
    assert [group.name for group in regularizer.groups] == ["middle"]
    assert "mhe_loss" in regularizer.logs()
    assert regularizer.step == 3


class Opening(TrainerCallback):
    def __init__(self, model: Any, step: int) -> None:
        self.model, self.step = model, step
        self.gradient: Tensor | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.model.middle.requires_grad_(True)
            self.gradient = energy_gradient(self.model, "middle")


@pytest.mark.slow
def test_a_callback_that_opens_layers(tmp_path: Path) -> None:
    """A Trainer with an unfreezing callback would be refused before it starts, or say numbers of nothing."""
    ends, settings = [], {"per_device_train_batch_size": 8, "logging_strategy": "steps", "logging_steps": 1}
    for cls, mhe in ((Trainer, {}), (MHETrainer, {"mhe_config": HIDDEN_ONLY})):
        model = frozen_body()
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        opening = Opening(model, 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            trainer = cls(
                model, arguments(tmp_path, **settings), train_dataset=ROWS, optimizers=(optimizer, constant),
                callbacks=[opening], **mhe,
            )  # fmt: skip
            trainer.train()
        said = [str(each.message) for each in caught if "frozen" in str(each.message)]
        assert bool(said) is bool(mhe)
        ends.append(model)
    first, second = [record for record in trainer.state.log_history if "loss" in record]
    assert not any(key.startswith("mhe") for key in first)
    assert second["mhe_loss"] > 0
    found = {key: (value - ends[0].get_parameter(key)).detach() for key, value in ends[1].named_parameters()}
    expected = {key: torch.zeros_like(value) for key, value in found.items()}
    expected["middle.weight"] = -LEARNING_RATE * opening.gradient
    assert relative_difference(found, expected) < 1e-9


def test_a_budget_begins_with_the_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """The budget would be drawn from no groups, or be one of all the steps that had none."""
    model = frozen_body()
    with pytest.warns(UserWarning, match=LATER):
        regularizer = MHERegularizer(model, MHEConfig(hidden_weight=1.0, output_weight=0.0, budget=0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    counted = []
    for step in range(4):
        if step == 2:
            model.middle.requires_grad_(True)
        optimizer.zero_grad()
        regularizer(model(FEATURES, LABELS).loss).backward()
        optimizer.step()
        counted.append(regularizer.budget.step_operations)
    assert len(set(counted)) == 1
    assert "mhe_loss" in regularizer.logs()


def test_closed_again_is_said_again() -> None:
    """Of a penalty that began and ended, only the beginning would be known."""
    model = frozen_body()
    with pytest.warns(UserWarning, match=LATER):
        regularizer = MHERegularizer(model, HIDDEN_ONLY)
    loss = torch.zeros((), requires_grad=True)
    assert regularizer(loss) is loss
    model.body.requires_grad_(True)
    assert regularizer(loss) is not loss
    model.body.requires_grad_(False)
    with pytest.warns(UserWarning, match="from optimizer step 3 on: .* are frozen"):
        assert regularizer(loss) is loss


@pytest.mark.integrations
def test_an_adapter_that_is_switched_on_later() -> None:
    """A model loaded for inference, whose adapter is made to train later, would have to be bound again."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["body", "middle"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(make_tiny().double(), config)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    reference = MHERegularizer(model.train(), CONFIG).penalty().item()
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    with pytest.warns(UserWarning, match=LATER):
        regularizer = MHERegularizer(model, CONFIG)
    loss = torch.zeros((), requires_grad=True)
    assert regularizer(loss) is loss
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    assert regularizer(loss).item() == pytest.approx(reference, rel=1e-9)

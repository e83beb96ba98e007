"""Callbacks that average the weights and swap the average in for an evaluation: the training goes on as without.

Trainer has no event before an evaluation: such a callback swaps at the end of a step, and back after the evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback

from hf_mhe import EnergyCallback, MHETrainer
from tests.training.cases import (
    CONFIG,
    HIDDEN,
    LEARNING_RATE,
    OUTPUT,
    make_tiny,
    relative_difference,
    slow_penalty,
    starting_gradient,
    tiny_data,
    tiny_terms,
)
from tests.training.trainers import logged_arguments

pytestmark = pytest.mark.slow

DECAY, STEPS, EVERY, SAVED = 0.5, 4, 1, 2
Values = dict[str, Tensor]


class Average(TrainerCallback):
    """Keeps an average of the weights, and has the model evaluated and saved with it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.swapped = False
        self.start(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.update(model)
        if control.should_evaluate:
            self.swapped = True
            self.swap_in(model)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.swapped:
            self.swapped = False
            self.swap_back(model)

    def start(self, model: Any) -> None:
        self.average = {name: value.detach().clone() for name, value in model.named_parameters()}

    def update(self, model: Any) -> None:
        with torch.no_grad():
            for name, value in model.named_parameters():
                self.average[name].mul_(DECAY).add_(value, alpha=1 - DECAY)

    def swap_in(self, model: Any) -> None:
        self.kept = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.put(model, self.average)

    def swap_back(self, model: Any) -> None:
        self.put(model, self.kept)

    def put(self, model: Any, values: Values) -> None:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(values[name])


class ByData(Average):
    """The parameters stay, and their storage is another."""

    def put(self, model: Any, values: Values) -> None:
        for name, value in model.named_parameters():
            value.data = values[name].clone()


class ByAssignment(Average):
    """Other parameters while the average is in, and those that the optimizer has after it."""

    def swap_in(self, model: Any) -> None:
        self.own = dict(model.named_parameters())
        model.load_state_dict({name: value.clone() for name, value in self.average.items()}, assign=True)
        assert all(value is not self.own[name] for name, value in model.named_parameters())

    def swap_back(self, model: Any) -> None:
        model.load_state_dict(self.own, assign=True)
        assert all(value is self.own[name] for name, value in model.named_parameters())


class OfTorch(Average):
    """`torch.optim.swa_utils`."""

    def start(self, model: Any) -> None:
        self.of_torch = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.update(model)  # it takes the first weights that it sees

    def update(self, model: Any) -> None:
        self.of_torch.update_parameters(model)
        self.average = dict(self.of_torch.module.named_parameters())


class OfDiffusers(Average):
    """`diffusers.training_utils.EMAModel`."""

    def start(self, model: Any) -> None:
        from diffusers.training_utils import EMAModel

        self.of_diffusers = EMAModel(model.parameters(), decay=DECAY, min_decay=DECAY)

    def update(self, model: Any) -> None:
        self.of_diffusers.step(model.parameters())

    def swap_in(self, model: Any) -> None:
        self.of_diffusers.store(model.parameters())
        self.of_diffusers.copy_to(model.parameters())

    def swap_back(self, model: Any) -> None:
        self.of_diffusers.restore(model.parameters())


class Look(TrainerCallback):
    """What the penalty of the model is in each evaluation; before the callback that swaps the weights back."""

    def __init__(self) -> None:
        self.weights: list[nn.Module] = []
        self.penalties: list[float] = []
        self.energies: list[dict[str, float]] = []
        self.trainer: Any = None

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append(copy.deepcopy(model))
        self.penalties.append(self.trainer.mhe_regularizer.penalty().item())
        self.energies.append(self.trainer.mhe_regularizer.energies())


def train(folder: Path, *callbacks: TrainerCallback, accumulation: int = 1, **changes: Any) -> tuple[Any, Look]:
    look = Look()
    settings = {
        "max_steps": STEPS, "gradient_accumulation_steps": accumulation, "eval_strategy": "steps", "eval_steps": EVERY,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    }  # fmt: skip
    trainer = MHETrainer(
        make_tiny().double(),
        logged_arguments(folder, **{**settings, **changes}),
        train_dataset=tiny_data(48),
        eval_dataset=tiny_data(8, seed=2),
        mhe_config=CONFIG,
        callbacks=[look, *callbacks],
    )
    look.trainer = trainer
    trainer.train()
    return trainer, look


def records(trainer: Trainer, part: str) -> list[dict[str, float]]:
    return [record for record in trainer.state.log_history if part in record]


AVERAGES: dict[str, Any] = {
    "copied": Average,
    "data": pytest.param(ByData, marks=pytest.mark.story),
    "assigned": ByAssignment,
    "torch": pytest.param(OfTorch, marks=pytest.mark.story),
    "diffusers": pytest.param(OfDiffusers, marks=pytest.mark.integrations),
}


@pytest.mark.parametrize("kind", AVERAGES.values(), ids=AVERAGES)
def test_the_training_is_that_without_the_callback(kind: Callable[[], Average], tmp_path: Path) -> None:
    """The next step would have the gradient of the average, or the log its numbers among the training's."""
    if kind is OfDiffusers:
        pytest.importorskip("diffusers")
    plain, watched = train(tmp_path, accumulation=3)
    trainer, look = train(tmp_path, kind(), accumulation=3)
    for one, other in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert records(trainer, "loss") == records(plain, "loss")
    assert "mhe_spread" in records(trainer, "loss")[0]
    # the evaluations are of other weights, and so is the penalty in them: by the formula, and not the last step's
    assert len(look.penalties) == STEPS // EVERY
    for model, penalty, energies in zip(look.weights, look.penalties, look.energies, strict=True):
        assert penalty == pytest.approx(slow_penalty(tiny_terms(model, HIDDEN, OUTPUT)).item(), rel=1e-9)
        assert HIDDEN * (energies["body"] + energies["middle"]) + OUTPUT * energies["classifier"] == pytest.approx(
            penalty
        )
    assert abs(look.penalties[-1] - watched.penalties[-1]) > 1e-4


@pytest.mark.story
@pytest.mark.parametrize("kind", [Average, ByData, ByAssignment])
def test_the_step_after_a_swap_has_the_gradient_of_the_trained_weights(kind: Any, tmp_path: Path) -> None:
    """The penalty would pull the trained weights as it would have pulled their average."""
    moved = []
    for cls, mhe in ((Trainer, {}), (MHETrainer, {"mhe_config": CONFIG})):
        args = logged_arguments(
            tmp_path, max_steps=2, gradient_accumulation_steps=1, eval_strategy="steps", eval_steps=1,
            learning_rate=LEARNING_RATE, max_grad_norm=0.0, logging_strategy="no",
        )  # fmt: skip
        model = make_tiny().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        # the first step leaves the weights where they are
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
        callback = kind()
        callback.update = lambda model, own=callback: [value.mul_(1.5).add_(0.1) for value in own.average.values()]
        trainer = cls(
            model, args, train_dataset=tiny_data(8), eval_dataset=tiny_data(8, seed=2), callbacks=[callback],
            optimizers=(optimizer, schedule), **mhe,
        )  # fmt: skip
        trainer.train()
        moved.append(dict(model.named_parameters()))
    found = {name: (value - moved[0][name]).detach() for name, value in moved[1].items()}
    gradient = starting_gradient("tiny", HIDDEN, OUTPUT)
    assert relative_difference(found, {name: -LEARNING_RATE * value for name, value in gradient.items()}) < 1e-9


def test_energy_callback_beside_it(tmp_path: Path) -> None:
    """It would measure other weights than those that its place among the callbacks says."""

    class Keep(TrainerCallback):
        def __init__(self) -> None:
            self.seen: dict[int, Any] = {}

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.seen[state.global_step] = copy.deepcopy(model)

    for average_first in (False, True):
        energies, keep = EnergyCallback(1, prefix="all_", share_of_time=None, log_groups=True), Keep()
        order = [Average(), energies, keep] if average_first else [energies, keep, Average()]
        trainer, _ = train(tmp_path, *order)
        plain, _ = train(tmp_path)
        found = records(trainer, "all_mean_energy")
        assert [record["step"] for record in found] == [1, 2, 3, 4]
        for record in found:
            rows = keep.seen[record["step"]].body.weight
            expected = slow_penalty([(rows, 1.0, "half")]).item()
            assert record["all_energy/body"] == pytest.approx(expected, rel=1e-6)
        # the penalty's own records are of the trained weights in either case
        assert records(trainer, "loss") == records(plain, "loss")


@pytest.mark.story
def test_a_checkpoint_has_the_trained_weights(tmp_path: Path) -> None:
    """A training that is resumed would go on from the average, or from a state that no longer loads."""
    changes = {"save_strategy": "steps", "save_steps": SAVED}
    whole, _ = train(tmp_path / "whole", Average(), **changes)
    resumed, _ = train(tmp_path / "other", Average(), save_strategy="no", max_steps=SAVED)
    resumed.args.max_steps = STEPS
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{SAVED}"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)

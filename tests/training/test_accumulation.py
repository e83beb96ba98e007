"""One optimizer step under every split of its batch: what the penalty adds is lambda times its gradient.

Of hand-written loops the cases here are those that `test_accelerate_loop.py` does not have: a model that takes keyword
arguments and ignores them, a model of no library's, and single precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_mhe import MHEError, MHETrainer, with_mhe
from tests.training.cases import (
    ALL_CASES,
    HIDDEN,
    LEARNING_RATE,
    OUTPUT,
    make_tiny,
    relative_difference,
    starting_gradient,
    tiny_data,
)
from tests.training.loops import forget_accelerate, loop
from tests.training.trainers import arguments, by_formula, config_of, contribution, difference, train

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
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
DOUBLE, SINGLE = torch.float64, torch.float32
IN_SINGLE = ("1x16", "4x4", "last accumulation of 1 in 3", "last accumulation of 3 in 4")


def cases(names: list[str], names_in_single: list[str]) -> list[Any]:
    """Every split in double precision, and some in single precision."""
    chosen = [(name, split, DOUBLE) for name in names for split in SPLITS]
    chosen += [(name, split, SINGLE) for name in names_in_single for split in IN_SINGLE]
    # A newcomer's run has each model once, at the split that goes wrong most easily.
    first = {(name, "last accumulation of 3 in 4", DOUBLE) for name in names}
    return [
        pytest.param(
            *case, id=f"{case[0]} {case[1]} {str(case[2])[6:]}", marks=() if case in first else pytest.mark.story
        )
        for case in chosen
    ]


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "split", "dtype"), cases(list(ALL_CASES), list(ALL_CASES)))
def test_trainer(name: str, split: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Lambda would be another one for every split of the batch and every kind of model."""
    count, per_device, accumulation, resting = SPLITS[split]
    found = contribution(
        name,
        tmp_path,
        dtype=dtype,
        data=ALL_CASES[name].data(count),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        steps_at_rest=resting,
    )
    assert relative_difference(found, by_formula(name)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("name", "split", "dtype"), cases(["bert", "plain"], list(ALL_CASES)))
def test_hand_written_loop(name: str, split: str, dtype: torch.dtype) -> None:
    """Lambda would be another one without Trainer."""
    count, batch, accumulation, step = SPLITS[split]
    ends = [
        loop(name, penalty, count, batch, accumulation, step, dtype=dtype, config=config_of(name))
        for penalty in (False, True)
    ]
    found = {key: ends[1][key] - ends[0][key] for key in ends[0]}
    assert relative_difference(found, by_formula(name)) < TOLERANCE[dtype]


@pytest.mark.story
@pytest.mark.parametrize(
    "changes",
    [
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
        {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}},
        {"average_tokens_across_devices": False},
        {"label_smoothing_factor": 0.2},
        {"torch_empty_cache_steps": 1},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.parametrize("name", ["gpt2", "tiny"])
def test_what_trainer_can_be_told(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """An option that has nothing to do with the penalty would change its strength."""
    own = {} if "num_steps" in str(changes) else {"gradient_accumulation_steps": 4}
    found = contribution(name, tmp_path, per_device_train_batch_size=4, **own, **changes)
    assert relative_difference(found, by_formula(name)) < 1e-9


@pytest.mark.slow
def test_every_second_step_makes_up_for_the_other(tmp_path: Path) -> None:
    """Micro-batches would be counted as steps, or the steps left out would weaken the penalty."""
    for resting, times in ((0, 2.0), (1, 0.0), (2, 2.0)):
        found = contribution(
            "gpt2",
            tmp_path,
            data=ALL_CASES["gpt2"].data(14),
            config=config_of("gpt2", every_n_steps=2),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=3,
            steps_at_rest=resting,
            max_steps=resting + 1,
        )
        if times:
            assert relative_difference(found, by_formula("gpt2", times)) < 1e-9
        else:
            assert not any(value.any() for value in found.values())


class Stream(IterableDataset):
    """A data set whose length nobody knows."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "tiny"])
def test_a_stream_that_ends_within_an_accumulation(name: str, tmp_path: Path) -> None:
    """Micro-batches left over at the end of a stream, which Trainer carries on, would add a penalty of their own."""
    found = contribution(
        name,
        tmp_path,
        data=Stream(ALL_CASES[name].data(14)),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        max_steps=2,
        steps_at_rest=1,
    )
    assert relative_difference(found, by_formula(name)) < 1e-9


def test_clipping_sees_the_penalty(tmp_path: Path) -> None:
    """The step would not be the clipped gradient of the objective, but a clipped task and an unclipped penalty."""
    case, limit = ALL_CASES["tiny"], 0.02
    model = case.make().double()
    args = arguments(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, max_grad_norm=limit, logging_steps=1,
        logging_strategy="steps",
    )  # fmt: skip
    trainer = train(MHETrainer, model, args, train_dataset=case.data(16), mhe_config=config_of("tiny"))
    start, rows = case.make().double(), case.data(16)
    features = torch.stack([row["features"] for row in rows])
    start(features, torch.tensor([row["labels"] for row in rows])).loss.backward()
    penalty = starting_gradient("tiny", HIDDEN, OUTPUT)
    whole = {key: value.grad + penalty[key] for key, value in start.named_parameters()}
    norm = torch.stack([value.norm() for value in whole.values()]).norm().item()
    assert norm > limit
    expected = {key: -LEARNING_RATE * limit / norm * value for key, value in whole.items()}
    # clip_grad_norm_ adds 1e-6 to the norm it divides by
    assert relative_difference(difference(start, model), expected) < 2e-6 / norm
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norm, rel=1e-6)


class Twice(Trainer):
    """A step of two passes, as adversarial training does it: the second sees perturbed inputs."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        perturbed = {**inputs, "features": inputs["features"] + 0.1}
        return super().training_step(model, inputs, num_items_in_batch) + super().training_step(
            model, perturbed, num_items_in_batch
        )


class TwiceOfMHE(MHETrainer):
    """The same, by somebody who starts from MHETrainer."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        perturbed = {**inputs, "features": inputs["features"] + 0.1}
        return super().training_step(model, inputs, num_items_in_batch) + super().training_step(
            model, perturbed, num_items_in_batch
        )


@pytest.mark.slow
@pytest.mark.parametrize("cls", [with_mhe(Twice), TwiceOfMHE], ids=["with_mhe(Twice)", "Twice(MHETrainer)"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_of_two_passes_has_one_penalty(cls: type[Trainer], accumulation: int, tmp_path: Path) -> None:
    """Adversarial training, or any step of several backward passes, would double lambda."""
    case = ALL_CASES["tiny"]
    models = case.make().double(), case.make().double()
    for model, kind, mhe in zip(models, (Twice, cls), ({}, {"mhe_config": config_of("tiny")}), strict=True):
        args = arguments(
            tmp_path, per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation
        )
        train(kind, model, args, train_dataset=case.data(16), **mhe)
    assert relative_difference(difference(*models), by_formula("tiny")) < 1e-9


def test_a_step_outside_of_training_has_its_penalty(tmp_path: Path) -> None:
    """A program that calls `training_step` in a loop of its own, where nothing counts the steps, would have one."""
    trainer = MHETrainer(make_tiny().double(), arguments(tmp_path), mhe_config=config_of("tiny"))
    rows = tiny_data(4)
    batch = {"features": torch.stack([row["features"] for row in rows]), "labels": torch.zeros(4, dtype=torch.int64)}
    trainer.current_gradient_accumulation_steps = 1  # which Trainer's own loop would have set
    plain = make_tiny().double()
    for _ in range(2):
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, dict(batch))
        plain.zero_grad()
        plain(**batch).loss.backward()
        found = {key: value.grad - plain.get_parameter(key).grad for key, value in trainer.model.named_parameters()}
        assert relative_difference(found, starting_gradient("tiny", HIDDEN, OUTPUT)) < 1e-9


def test_a_backward_that_was_in_place_stays(tmp_path: Path) -> None:
    """Another library's `accelerator.backward` would be gone after the first step."""
    trainer = MHETrainer(make_tiny(), arguments(tmp_path), train_dataset=tiny_data(16), mhe_config=config_of("tiny"))
    theirs, losses = trainer.accelerator.backward, []

    def counted(loss: Tensor, **keywords: Any) -> None:
        losses.append(loss.item())
        theirs(loss, **keywords)

    trainer.accelerator.backward = counted
    trainer.train()
    assert trainer.accelerator.backward is counted
    assert len(losses) == trainer.state.global_step


def test_a_loop_without_training_step_is_stopped(tmp_path: Path) -> None:
    """A Trainer class with a loop of its own would train without the penalty, and nothing would say so."""

    class OwnLoop(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> None:
            for batch in self.get_train_dataloader():
                self.accelerator.backward(self.model(**batch).loss)
                self.state.global_step += 1
                self.callback_handler.on_step_end(self.args, self.state, self.control)

    trainer = with_mhe(OwnLoop)(make_tiny(), arguments(tmp_path), train_dataset=tiny_data(16))
    with pytest.raises(MHEError, match=r"MHEOwnLoop made an optimizer step without its training_step.*MHERegularizer"):
        trainer.train()
    off = {"hidden_weight": 0, "output_weight": 0}
    with_mhe(OwnLoop)(make_tiny(), arguments(tmp_path), train_dataset=tiny_data(16), mhe_config=off).train()


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_evaluation_and_prediction_to_the_bit(name: str, tmp_path: Path) -> None:
    """A loss, or a prediction, of a model with MHE could not be compared with one without."""
    case = ALL_CASES[name]
    changes: dict[str, Any] = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "eval_strategy": "steps", "eval_steps": 1,
    }  # fmt: skip
    data = {"train_dataset": case.data(14), "eval_dataset": case.data(6, seed=2)}
    model = case.make()
    trainer = train(MHETrainer, model, arguments(tmp_path, **changes), mhe_config=config_of(name), **data)
    plain = Trainer(model, arguments(tmp_path), eval_dataset=data["eval_dataset"])
    last = [record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record]
    assert len(last) == 3
    assert last[-1] == plain.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    ours, theirs = trainer.predict(data["eval_dataset"]), plain.predict(data["eval_dataset"])
    assert ours.metrics["test_loss"] == theirs.metrics["test_loss"]
    assert (ours.predictions == theirs.predictions).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "bert", "plain"])
def test_the_logged_loss_is_the_tasks(name: str, tmp_path: Path) -> None:
    """The curve of the loss would jump by the penalty, once in every accumulation."""
    case = ALL_CASES[name]
    changes: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    logged = []
    for cls, mhe in ((Trainer, {}), (MHETrainer, {"mhe_config": config_of(name)})):
        args = arguments(tmp_path, logging_strategy="steps", logging_steps=1, **changes)
        trainer = train(cls, case.make().double(), args, train_dataset=case.data(14), steps_at_rest=9, **mhe)
        logged.append([record["loss"] for record in trainer.state.log_history if "loss" in record])
    assert logged[0] == logged[1]
    assert len(logged[0]) == 2

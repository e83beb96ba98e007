"""Trainers whose model is made in `train`, as a search for hyperparameters does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_mhe import MHEConfig, MHEError, MHETrainer
from tests.training.cases import (
    CASES,
    CONFIG,
    HIDDEN,
    LEARNING_RATE,
    OUTPUT,
    make_bert,
    make_tiny,
    relative_difference,
    starting_gradient,
    tiny_data,
)
from tests.training.loops import forget_accelerate
from tests.training.trainers import arguments

OFF = MHEConfig(hidden_weight=0.0, output_weight=0.0)


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def trainer_of(cls: type[Trainer], model_init: Callable[..., Any], folder: Path, **keywords: Any) -> Any:
    changes = {"learning_rate": LEARNING_RATE, "optim": "sgd", "lr_scheduler_type": "constant", "max_steps": 1}
    args = arguments(folder, per_device_train_batch_size=16, **changes, **keywords.pop("changes", {}))
    return cls(None, args, model_init=model_init, train_dataset=tiny_data(16), **keywords)


def double() -> Any:
    return make_tiny().double()


@pytest.mark.story
@pytest.mark.slow
@pytest.mark.parametrize("trainings", [1, 2])
@pytest.mark.parametrize("emptied", [True, False])
def test_a_trainer_without_a_model_trains(emptied: bool, trainings: int, tmp_path: Path) -> None:
    """A search for hyperparameters would end in an AssertionError, where Trainer trains."""
    ends = []
    for cls, mhe in ((Trainer, {}), (MHETrainer, {"mhe_config": CONFIG})):
        trainer = trainer_of(cls, double, tmp_path, **mhe)
        for _ in range(trainings):
            if emptied:
                trainer.model = None
            trainer.train()
        ends.append(trainer.model)
    found = {key: (value - ends[0].get_parameter(key)).detach() for key, value in ends[1].named_parameters()}
    gradient = starting_gradient("tiny", HIDDEN, OUTPUT)
    assert relative_difference(found, {key: -LEARNING_RATE * value for key, value in gradient.items()}) < 1e-9
    assert trainer.mhe_regularizer.model is trainer.model


@pytest.mark.slow
def test_switched_off_it_trains_as_trainer(tmp_path: Path) -> None:
    """The baseline of the search would not be Trainer's own."""
    ends = []
    for cls, mhe in ((Trainer, {}), (MHETrainer, {"mhe_config": OFF})):
        trainer = trainer_of(cls, lambda: make_tiny(), tmp_path, **mhe)
        trainer.model = None
        trainer.train()
        ends.append(trainer.model)
    for one, other in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_budget_is_counted_in_a_model_made_late(tmp_path: Path) -> None:
    """The first forward pass would be over before anything counts it."""
    trainer = trainer_of(MHETrainer, lambda: make_tiny(), tmp_path, mhe_config={"budget": 0.9})
    trainer.model = None
    trainer.train()
    assert trainer.mhe_regularizer.budget.step_operations > 0


@pytest.mark.slow
def test_each_training_has_its_own_architecture(tmp_path: Path) -> None:
    """A search over architectures would regularize the layers of the first one."""
    made: list[Any] = [make_tiny(), make_tiny(), make_bert()]

    def model_init() -> Any:
        return made.pop(0)

    changes = {"remove_unused_columns": False}  # which Trainer would choose by the first model
    trainer = trainer_of(MHETrainer, model_init, tmp_path, mhe_config=CONFIG, changes=changes)
    trainer.train()
    assert [group.name for group in trainer.mhe_regularizer.groups] == ["body", "middle", "classifier"]
    trainer.model = None
    trainer.train_dataset = CASES_BERT
    trainer.train()
    assert "bert.encoder.layer.0.attention.self.query" in {group.name for group in trainer.mhe_regularizer.groups}


CASES_BERT = [{"input_ids": row["input_ids"], "labels": index % 3} for index, row in enumerate(CASES["gpt2"].data(16))]


@pytest.mark.slow
def test_what_there_is_to_refuse_is_refused_in_train(tmp_path: Path) -> None:
    """A trial whose model has nothing to regularize would be one without MHE, reported as one with."""
    made: list[Any] = [make_tiny(), make_tiny(), make_tiny()]

    def model_init() -> Any:
        return made.pop(0)

    trainer = trainer_of(MHETrainer, model_init, tmp_path, mhe_config={"include": "body"})
    trainer.model = None
    with pytest.raises(MHEError, match=r"has no model to regularize yet: model_init"):
        _ = trainer.mhe_regularizer
    made[0].body = torch.nn.Identity()
    with pytest.raises(MHEError, match="body"):
        trainer.train()
    trainer.train()  # the next trial


@pytest.mark.slow
@pytest.mark.integrations
@pytest.mark.parametrize("config", [CONFIG, OFF, MHEConfig(budget=0.5, schedule="linear")])
def test_a_search_for_hyperparameters(config: MHEConfig, tmp_path: Path) -> None:
    """Trainer's own search would not run, or carry something of one trial into the next."""
    pytest.importorskip("optuna")
    trials: list[Any] = []

    def model_init(trial: Any = None) -> Any:
        if trial is not None:
            trials.append(trial)
        return make_tiny()

    changes = {"eval_strategy": "steps", "eval_steps": 1, "logging_strategy": "steps", "logging_steps": 1}
    trainer = trainer_of(
        MHETrainer, model_init, tmp_path, mhe_config=config, eval_dataset=tiny_data(8, seed=2), changes=changes
    )
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)},
        n_trials=3,
        backend="optuna",
        direction="minimize",
    )
    assert len(trials) == 3
    assert best.hyperparameters["learning_rate"] > 0
    trainer.train()  # with what was found, as a program goes on
    assert trainer.mhe_regularizer.model is trainer.model
    first = trainer.state.log_history[0]
    assert ("mhe_loss" in first) is not config.is_off


@pytest.mark.slow
@pytest.mark.integrations
def test_a_search_for_lambda(tmp_path: Path) -> None:
    """A trial would have the weights of the one before, or something of it, and the search find nothing."""
    pytest.importorskip("optuna")
    chosen: list[float] = []
    before: list[weakref.ref[Any]] = []
    trainer: Any = None

    def model_init(trial: Any = None) -> Any:
        model = double()
        if trial is not None:
            chosen.append(trial.suggest_float("hidden_weight", 0.1, 2.0))
            trainer.mhe_config = {"hidden_weight": chosen[-1], "output_weight": OUTPUT}
        return model

    class Ends(TrainerCallback):
        def __init__(self) -> None:
            self.models: list[dict[str, torch.Tensor]] = []

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.models.append({name: value.detach().clone() for name, value in model.named_parameters()})
            if trainer is not None:
                gc.collect()
                assert not [each for each in before if each() is not None]  # regularizers and models of other trials
                before.extend((weakref.ref(trainer.mhe_regularizer), weakref.ref(model)))
                assert not model._forward_hooks
                assert not any(value._backward_hooks for value in model.parameters())

    plain, ends = Ends(), Ends()
    trainer_of(Trainer, double, tmp_path, callbacks=[plain]).train()
    changes = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(
        MHETrainer, model_init, tmp_path, mhe_config=OFF, eval_dataset=tiny_data(8, seed=2), changes=changes,
        callbacks=[ends],
    )  # fmt: skip
    best = trainer.hyperparameter_search(lambda trial: {}, n_trials=3, backend="optuna", direction="minimize")
    assert len(chosen) == len(set(chosen)) == len(ends.models) == 3
    assert best.hyperparameters["hidden_weight"] in chosen
    for weight, end in zip(chosen, ends.models, strict=True):
        found = {name: end[name] - plain.models[0][name] for name in end}
        gradient = starting_gradient("tiny", weight, OUTPUT)
        assert relative_difference(found, {name: -LEARNING_RATE * value for name, value in gradient.items()}) < 1e-9


def test_another_config_for_the_next_training(tmp_path: Path) -> None:
    """What is assigned would be found wrong in the middle of a search, or not be used."""
    trainer = trainer_of(MHETrainer, double, tmp_path, mhe_config=OFF)
    with pytest.raises(MHEError, match="hidden_wieght"):
        trainer.mhe_config = {"hidden_wieght": 1.0}
    assert trainer.mhe_config == OFF
    trainer.mhe_config = {"hidden_weight": HIDDEN}
    trainer.train()
    assert trainer.mhe_regularizer.config == MHEConfig(hidden_weight=HIDDEN)

"""EnergyCallback in a plain Trainer: when it measures, what it logs, where that lands, and what it leaves alone."""

from __future__ import annotations

import json
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

import hf_mhe
from hf_mhe import EnergyCallback, MHEError, MHETrainer, energy_lower_bound, expected_energy
from tests.training.cases import make_gpt2, make_tiny, slow_energy, tiny_data
from tests.training.trainers import logged_arguments, records

NO_LIMIT: dict[str, Any] = {"share_of_time": None}


class Tracker(TrainerCallback):
    """A tracker as those that `report_to` names, which Trainer calls before the callbacks of its user."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({**logs, "step": state.global_step}) + "\n")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with self.path.open("a") as file:
            file.write('{"closed": true}\n')


class Keep(TrainerCallback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}


def measured(trainer: Trainer, prefix: str = "mhe_") -> list[dict[str, float]]:
    return [record for record in trainer.state.log_history if f"{prefix}spread" in record]


def train(folder: Path, *callbacks: TrainerCallback, steps: int = 6, **changes: Any) -> Trainer:
    args = logged_arguments(folder, max_steps=steps, gradient_accumulation_steps=1, **changes)
    evaluation = {"eval_dataset": tiny_data(8, seed=2)} if "eval_strategy" in changes else {}
    trainer = Trainer(make_tiny(), args, train_dataset=tiny_data(16), callbacks=list(callbacks), **evaluation)
    trainer.train()
    return trainer


def test_the_values_are_those_of_the_weights_after_the_step(tmp_path: Path) -> None:
    """The curves would show other weights than the step's, or other numbers than the reports have."""
    keep = Keep()
    trainer = train(tmp_path, keep, EnergyCallback(3, log_groups=True, **NO_LIMIT), steps=7)
    found = measured(trainer)
    assert [record["step"] for record in found] == [1, 3, 6, 7]
    for record in found:
        model = make_tiny()
        model.load_state_dict(keep.weights[int(record["step"])])
        report = hf_mhe.analyze(model)
        assert record["mhe_spread"] == pytest.approx(report.summary.mean_spread, rel=1e-4)
        crowded = [1 / group.equivalent_dimension for group in report.groups]
        assert record["mhe_equivalent_dimension"] == pytest.approx(len(crowded) / sum(crowded), rel=1e-4)
        energies, scores = [], []
        for group in report.groups:
            space = "full" if group.name == "classifier" else "half"
            energies.append(slow_energy(model.get_parameter(f"{group.name}.weight").detach(), space=space).item())
            assert record[f"mhe_energy/{group.name}"] == pytest.approx(energies[-1], rel=1e-5)
            assert record[f"mhe_spread/{group.name}"] == pytest.approx(group.spread, rel=1e-4)
            lower = energy_lower_bound(group.n, group.d, space=space)  # type: ignore[arg-type]
            expected = expected_energy(group.n, group.d, space=space)  # type: ignore[arg-type]
            scores.append((energies[-1] - lower) / (expected - lower))
        assert record["mhe_mean_energy"] == pytest.approx(sum(energies) / 3, rel=1e-5)
        assert record["mhe_score"] == pytest.approx(sum(scores) / 3, rel=1e-5)
        assert 0 < record["mhe_share_of_time"] < 1


@pytest.mark.slow
def test_training_and_its_log_are_as_without(tmp_path: Path) -> None:
    """Looking at a training would change it: its weights, its records, or which steps have one."""
    ends, histories = [], []
    for callbacks in ([], [EnergyCallback(2, **NO_LIMIT)]):
        changes = {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 2}
        trainer = train(tmp_path, *callbacks, **changes)
        ends.append([parameter.detach() for parameter in trainer.model.parameters()])
        own = [record for record in trainer.state.log_history if "mhe_spread" not in record]
        timed = ("runtime", "per_second")
        histories.append([{k: v for k, v in record.items() if not k.endswith(timed)} for record in own])
    assert all(map(torch.equal, *ends))
    assert histories[0] == histories[1]
    assert not any(key.startswith("mhe") for record in histories[1] for key in record)
    assert "train_loss" in histories[1][-1]


@pytest.mark.parametrize("place", ["before", "after"])
def test_every_callback_gets_the_record(place: str, tmp_path: Path) -> None:
    """A tracker that Trainer calls first would have no curve, and the history another than the trackers."""
    tracker, callback = Tracker(tmp_path / "log.jsonl"), EnergyCallback(2, **NO_LIMIT)
    trainer = train(tmp_path, *((tracker, callback) if place == "before" else (callback, tracker)))
    lines = [json.loads(line) for line in tracker.path.read_text().splitlines()]
    assert [line for line in lines if "mhe_spread" in line] == measured(trainer)
    assert [line["step"] for line in lines if "mhe_spread" in line] == [1, 2, 4, 6]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert lines[-1] == {"closed": True}


@pytest.mark.slow
def test_where_the_training_ends_is_measured(tmp_path: Path) -> None:
    """A training that stops early would have no last value, or that of the best model under the last step's number."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    for order in ([Stop(), EnergyCallback(100)], [EnergyCallback(100), Stop()]):
        trainer = train(tmp_path, *order)
        assert [record["step"] for record in measured(trainer)] == [1, 3]
        assert "train_loss" in trainer.state.log_history[-1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_an_early_stop_is_measured_at_the_last_weights(strategy: str, tmp_path: Path) -> None:
    """The last value would be that of the best model, which Trainer loads after the training."""
    changes = {
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "learning_rate": 0.0,
        "steps": 40,
    }
    changes |= {"eval_steps": 2, "save_steps": 2} if strategy == "steps" else {}
    for order in (0, 1):
        keep, callback = Keep(), EnergyCallback(100)
        stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=0.5)
        trainer = train(tmp_path / str(order), keep, *((stop, callback) if order else (callback, stop)), **changes)
        assert trainer.state.global_step < 40
        assert [record["step"] for record in measured(trainer)] == [1, trainer.state.global_step]


class Slow(nn.Module):
    """A step that takes as long as it is told, beside a matrix whose measurement takes longer than a hundredth."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.layer = nn.Linear(6, 6)
        self.wide = nn.Linear(64, 2500)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        time.sleep(self.seconds)
        return SequenceClassifierOutput(loss=self.layer(features).sum() + self.wide.weight.sum())


@pytest.mark.slow
def test_a_share_of_the_time_is_kept(tmp_path: Path) -> None:
    """A measurement that is slow beside a step would take as much time as the training."""
    callback = EnergyCallback(1, share_of_time=0.05)
    args = logged_arguments(tmp_path, max_steps=120, gradient_accumulation_steps=1, logging_strategy="no")
    trainer = Trainer(Slow(0.02), args, train_dataset=tiny_data(16), callbacks=[callback])
    trainer.train()
    assert callback.steps[0] == 1
    assert callback.steps[-1] == 120
    assert callback.skipped > 0
    assert len(callback.steps) + callback.skipped == 120
    taken = [record["mhe_share_of_time"] for record in measured(trainer)]
    assert taken[-1] == callback.share_of_time_taken
    assert all(share > 0 for share in taken)


def test_what_is_said_of_the_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody would know that steps which were due have no value."""
    callback = EnergyCallback(1, share_of_time=1e-9)
    trainer = train(tmp_path, callback)
    assert callback.steps == [1, 6]  # the first and the last, whatever they cost
    assert callback.skipped == 4
    assert "EnergyCallback measured 2 of 6 steps that were due, in " in capsys.readouterr().err
    assert [record["step"] for record in measured(trainer)] == [1, 6]


@pytest.mark.slow
def test_resumed_at_the_steps_of_a_training_that_was_not_stopped(tmp_path: Path) -> None:
    """A resumed training would have values at other steps, or its first part twice."""
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 0.01}
    whole = train(tmp_path, EnergyCallback(2, **NO_LIMIT), **changes)
    args = logged_arguments(tmp_path, max_steps=6, gradient_accumulation_steps=1, **changes)
    again = Trainer(make_tiny(9), args, train_dataset=tiny_data(16), callbacks=[EnergyCallback(2, **NO_LIMIT)])
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [record["step"] for record in measured(again)] == [1, 2, 4, 6]
    for one, other in zip(measured(whole), measured(again), strict=True):
        same = one.keys() - {"mhe_share_of_time"}
        assert {key: one[key] for key in same} == {key: other[key] for key in same}


@pytest.mark.slow
def test_in_a_trainer_with_the_penalty_nothing_comes_twice(tmp_path: Path) -> None:
    """One curve would have points of two sources, or a walk would be paid for twice."""
    args = logged_arguments(tmp_path, max_steps=3)
    callback = EnergyCallback(1, **NO_LIMIT)
    trainer = MHETrainer(make_tiny(), args, train_dataset=tiny_data(24), callbacks=[callback])
    with pytest.warns(UserWarning, match=r"MHETrainer logs mhe_spread.*EnergyCallback\(prefix="):
        trainer.train()
    assert callback.steps == []
    assert all("loss" in record for record in measured(trainer))

    other = EnergyCallback(1, prefix="all_", **NO_LIMIT)
    trainer = MHETrainer(make_tiny(), args, train_dataset=tiny_data(24), callbacks=[other])
    trainer.train()
    assert [record["step"] for record in measured(trainer, "all_")] == [1, 2, 3]
    assert not any(key.startswith("mhe") for record in measured(trainer, "all_") for key in record)

    off = {"hidden_weight": 0.0, "output_weight": 0.0}
    trainer = MHETrainer(
        make_tiny(), args, train_dataset=tiny_data(24), mhe_config=off, callbacks=[EnergyCallback(**NO_LIMIT)]
    )
    trainer.train()
    assert [record["step"] for record in measured(trainer)] == [1, 3]


@pytest.mark.slow
def test_which_groups(tmp_path: Path) -> None:
    """The mean would be over other groups than were asked for; a vocabulary would be most of the work unasked."""

    def names(model: Any, **options: Any) -> set[str]:
        args = logged_arguments(tmp_path, max_steps=1, gradient_accumulation_steps=1)
        tokens = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
        data = tokens if hasattr(model, "transformer") else tiny_data(4)
        callback = EnergyCallback(log_groups=True, **options)
        trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])  # type: ignore[arg-type]
        trainer.train()
        (record,) = measured(trainer)
        return {key.removeprefix("mhe_spread/") for key in record if key.startswith("mhe_spread/")}

    assert names(make_tiny(), exclude="body") == {"middle", "classifier"}
    frozen = make_tiny()
    frozen.middle.requires_grad_(False)
    assert names(frozen) == {"body", "classifier"}
    assert all(name.startswith("transformer.h.0.") for name in names(make_gpt2()))
    assert names(make_gpt2(), include="transformer.wte") == {"transformer.wte"}
    assert names(make_gpt2(), include=["transformer.wte", "transformer.wpe"]) == {"transformer.wte", "transformer.wpe"}


def test_a_measurement_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    """Days of training would be lost to a value that nobody needs for it."""

    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    model.body.weight[0] = float("nan")

    args = logged_arguments(tmp_path, max_steps=4, gradient_accumulation_steps=1)
    callbacks = [Break(), EnergyCallback(1, **NO_LIMIT)]
    trainer = Trainer(make_tiny(), args, train_dataset=tiny_data(16), callbacks=callbacks)
    with pytest.warns(UserWarning, match="could not measure optimizer step 3: .*'body'") as caught:
        trainer.train()
    assert sum("could not measure" in str(warning.message) for warning in caught) == 1
    assert trainer.state.global_step == 4
    assert [record["step"] for record in measured(trainer)] == [1, 2]
    assert len(records(trainer)) == 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be an integer >= 1; got 0"),
        ({"every_n_steps": 2.5}, "every_n_steps"),
        ({"share_of_time": 0}, "share_of_time must be a share of the training's time"),
        ({"share_of_time": 1.5}, "share_of_time"),
        ({"include": 3}, "include must be"),
        ({"distance": "cosine"}, "distance must be one of"),
        ({"s": -1}, "s must be"),
        ({"prefix": None}, "prefix must be a string"),
        ({"log_groups": "yes"}, "log_groups must be True or False"),
    ],
)
def test_bad_arguments_are_named(wrong: dict[str, Any], words: str) -> None:
    """A slip of the pen would be found out at the end of a training."""
    with pytest.raises(MHEError, match=words):
        EnergyCallback(**wrong)


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_before_the_first_step(tmp_path: Path) -> None:
    """A training would run to its end without the values that it was started for."""

    def start(callback: EnergyCallback, model: nn.Module) -> None:
        Trainer(model, logged_arguments(tmp_path), train_dataset=tiny_data(8), callbacks=[callback]).train()

    with pytest.raises(MHEError, match="include pattern 'head' matches no neuron group"):
        start(EnergyCallback(include="head"), make_tiny())
    with pytest.raises(MHEError, match="nothing to measure in Sequential"):
        start(EnergyCallback(), nn.Sequential(nn.LayerNorm(6)))
    with pytest.raises(MHEError, match="was not called by a Trainer"):
        EnergyCallback().on_train_begin(None, None, None, model=make_tiny())


@pytest.mark.slow
def test_the_callback_travels_and_serves_twice(tmp_path: Path) -> None:
    """A callback of a sweep would bring the steps of one training into the next."""
    callback = pickle.loads(pickle.dumps(EnergyCallback(3, include="b*", **NO_LIMIT)))
    for _ in range(2):
        trainer = train(tmp_path, callback)
        assert callback.steps == [1, 3, 6]
        assert len(measured(trainer)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(callback))

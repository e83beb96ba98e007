"""What is logged of the penalty, by Trainer to its trackers and by hand-written loops, and the early diagnosis."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_mhe import MHEConfig, MHERegularizer, MHETrainer, energy_lower_bound, expected_energy
from hf_mhe.training.diagnosis import DWARFS
from tests.training.cases import CASES, make_tiny, slow_energy, slow_penalty, tiny_data, tiny_terms
from tests.training.loops import forget_accelerate
from tests.training.trainers import logged_arguments, records

CONFIG = MHEConfig(hidden_weight=0.7, output_weight=0.3, log_groups=True)


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


class Tracker(TrainerCallback):
    """A tracker as those that `report_to` names: it gets what Trainer reports, and writes it to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(logs) + "\n")


def expected_record(model: nn.Module) -> dict[str, float]:
    """The numbers of a record by the slow formula and the reference values, for the weights as they are."""
    energies: dict[str, float] = {}
    scores = []
    for name, space in (("body", "half"), ("middle", "half"), ("classifier", "full")):
        weight = model.get_parameter(f"{name}.weight").detach()
        energies[name] = slow_energy(weight, space=space).item()
        lower = energy_lower_bound(*weight.shape, space=space)  # type: ignore[arg-type]
        expected = expected_energy(*weight.shape, space=space)  # type: ignore[arg-type]
        scores.append((energies[name] - lower) / (expected - lower))
    return {
        "mhe_loss": slow_penalty(tiny_terms(model, 0.7, 0.3)).item(),  # type: ignore[arg-type]
        "mhe_mean_energy": sum(energies.values()) / 3,
        "mhe_score": sum(scores) / 3,
        **{f"mhe_energy/{name}": energy for name, energy in energies.items()},
    }


def test_a_tracker_gets_every_number(tmp_path: Path) -> None:
    """A training watched in a tracker would not show what the penalty does, or show another number."""
    args = logged_arguments(tmp_path)
    tracker = Tracker(tmp_path / "log.jsonl")
    trainer = MHETrainer(make_tiny(), args, train_dataset=tiny_data(16), mhe_config=CONFIG, callbacks=[tracker])
    trainer.train()
    first = json.loads(tracker.path.read_text().splitlines()[0])
    for key, value in expected_record(make_tiny()).items():
        assert first[key] == pytest.approx(value, rel=1e-5), key
    assert {"loss", "grad_norm", "learning_rate"} <= first.keys()
    assert "mhe_factor" not in first  # nothing is scheduled
    summary = json.loads(tracker.path.read_text().splitlines()[-1])
    assert "train_loss" in summary
    assert not any(key.startswith("mhe") for key in summary)


def test_groups_are_logged_on_request_only(tmp_path: Path) -> None:
    """A model of a thousand layers would fill the tracker with a thousand curves that nobody asked for."""
    trainer = MHETrainer(make_tiny(), logged_arguments(tmp_path), train_dataset=tiny_data(16), mhe_config=MHEConfig())
    trainer.train()
    mhe = {key for key in records(trainer)[0] if key.startswith("mhe")}
    assert mhe == {"mhe_spread", "mhe_loss", "mhe_mean_energy", "mhe_score", "mhe_gradient_ratio"}


def test_the_schedule_is_in_the_record(tmp_path: Path) -> None:
    """Nobody could tell a lambda that decays from a penalty that does its work."""
    config = MHEConfig(hidden_weight=0.7, output_weight=0.3, warmup_steps=2, every_n_steps=2)
    trainer = MHETrainer(
        make_tiny(), logged_arguments(tmp_path, learning_rate=0.0), train_dataset=tiny_data(48), mhe_config=config
    )
    trainer.train()
    found = records(trainer)
    assert [record["mhe_factor"] for record in found] == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    full = slow_penalty(tiny_terms(make_tiny(), 0.7, 0.3)).item()
    # what the penalty adds to the objective: of the factor, and not of the compensation, at the steps that compute it
    assert [record.get("mhe_loss") for record in found] == [
        0.0, None, pytest.approx(full, rel=1e-5), None, pytest.approx(full, rel=1e-5), None,
    ]  # fmt: skip


def test_softening_has_no_score() -> None:
    """A softened energy would be set against the reference numbers of the exact one."""
    model = make_tiny()
    regularizer = MHERegularizer(model, MHEConfig(softening=0.5))
    regularizer(torch.zeros(()))
    record = regularizer.logs()
    assert "mhe_score" not in record
    assert "mhe_mean_energy" in record


def test_layers_unfrozen_between_two_records_are_in_the_mean() -> None:
    """A record over steps with other layers in them would stop the training, or mix the layers up."""
    model = make_tiny().train()
    model.body.requires_grad_(False)
    regularizer = MHERegularizer(model, CONFIG)
    regularizer(torch.zeros(()))
    model.body.requires_grad_(True)
    regularizer(torch.zeros(()))
    record = regularizer.logs()
    expected = expected_record(model)
    for key in expected.keys() - {"mhe_loss"}:
        assert record[key] == pytest.approx(expected[key], rel=1e-5), key
    without = 0.7 * expected["mhe_energy/middle"] + 0.3 * expected["mhe_energy/classifier"]
    assert record["mhe_loss"] == pytest.approx((without + expected["mhe_loss"]) / 2, rel=1e-5)
    assert regularizer.logs() == {}


class Memory(GeneralTracker):
    """A tracker of accelerate's that keeps what it is given."""

    name = "memory"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> Any:
        return self.logged

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.logged.append((step, values))


def test_a_hand_written_loop_logs_the_same() -> None:
    """Without Trainer nobody would see what the penalty does."""
    memory = Memory()
    accelerator = Accelerator(cpu=True, log_with=memory, gradient_accumulation_steps=2)
    model: Any = make_tiny()
    regularizer = MHERegularizer(model, CONFIG)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    loader: Any = DataLoader(tiny_data(16), batch_size=4)  # type: ignore[arg-type]
    accelerator.init_trackers("run", config=CONFIG.to_dict())
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    for inputs in loader:
        with accelerator.accumulate(model):
            accelerator.backward(regularizer(model(**inputs).loss))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            accelerator.log(regularizer.logs(), step=regularizer.step)
    assert [step for step, _ in memory.logged] == [1, 2]
    first = memory.logged[0][1]
    for key, value in expected_record(make_tiny()).items():
        assert first[key] == pytest.approx(value, rel=1e-5), key
    assert all(isinstance(value, float) for value in first.values())


def ratio_by_hand(model: Any, loss: Tensor, penalty: Tensor) -> float:
    """The ratio of norms by two separate backward passes, over the matrices that the penalty reaches."""
    weights = [model.body.weight, model.middle.weight, model.classifier.weight]
    norms = [
        torch.stack([gradient.norm() for gradient in torch.autograd.grad(value, weights)]).norm()
        for value in (penalty, loss)
    ]
    return (norms[0] / norms[1]).item()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("per_device", "accumulation"), [(16, 1), (4, 4), (2, 8)])
@pytest.mark.parametrize("every", [1, 3])
def test_the_ratio_is_of_the_whole_steps_gradients(
    per_device: int, accumulation: int, every: int, tmp_path: Path
) -> None:
    """Under accumulation, the penalty would be compared with one micro-batch, and with clipping to what is left."""
    config = MHEConfig(hidden_weight=0.007, output_weight=0.003, every_n_steps=every)
    args = logged_arguments(
        tmp_path,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=1e-3,
    )
    data = tiny_data(16)
    trainer = MHETrainer(make_tiny().double(), args, train_dataset=data, mhe_config=config)
    trainer.train()
    model: Any = make_tiny().double()
    batch = {
        "features": torch.stack([row["features"] for row in data]),
        "labels": torch.tensor([row["labels"] for row in data]),
    }
    expected = ratio_by_hand(model, model(**batch).loss, slow_penalty(tiny_terms(model, 0.007, 0.003)))
    assert records(trainer)[0]["mhe_gradient_ratio"] == pytest.approx(expected, rel=1e-9)


def test_a_gradient_scaler_does_not_change_the_ratio() -> None:
    """In mixed precision the ratio would be off by the loss scale."""
    ratios = []
    for scale in (1.0, 2.0**10):
        model: Any = make_tiny().double().train()
        regularizer = MHERegularizer(model, MHEConfig(hidden_weight=0.01))
        loss = regularizer(model(torch.ones(2, 6), torch.tensor([0, 1])).loss / 3, scale=1.0)
        (loss * scale).backward()
        ratios.append(regularizer.logs()["mhe_gradient_ratio"])
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)


@pytest.mark.slow
def test_a_penalty_that_dwarfs_the_task_is_warned_of_once(tmp_path: Path) -> None:
    """A lambda a thousand times too large would be found out at the end of the training."""
    args = logged_arguments(tmp_path, learning_rate=1e-6)
    data = tiny_data(8 * 20)
    trainer = MHETrainer(make_tiny(), args, train_dataset=data, mhe_config={"hidden_weight": 1e4})
    with pytest.warns(UserWarning, match=r"times the task's.*MHEConfig by some \d+, or.*warmup_steps") as caught:
        trainer.train()
    assert sum("the task is hardly learnt" in str(warning.message) for warning in caught) == 1
    ratios = {index: record.get("mhe_gradient_ratio") for index, record in enumerate(records(trainer), 1)}
    assert [step for step, ratio in ratios.items() if ratio is not None] == [
        1,
        2,
        4,
        8,
        16,
    ]  # seldom, for it costs a walk
    quiet = MHETrainer(make_tiny(), args, train_dataset=data, mhe_config={"hidden_weight": 1e-3})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hardly learnt")
        quiet.train()


@pytest.mark.slow
def test_a_penalty_that_makes_itself_smaller_is_not_warned_of(tmp_path: Path) -> None:
    """On neurons that are nearly alike the first ratios are large, and the weight that says so may be the best."""
    model: Any = make_tiny()
    with torch.no_grad():
        for layer in (model.body, model.middle):
            layer.weight.copy_(layer.weight[:1] + 0.1 * torch.randn_like(layer.weight))
    args = logged_arguments(
        tmp_path, learning_rate=0.03, optim="adamw_torch", lr_scheduler_type="constant_with_warmup", warmup_steps=8
    )
    trainer = MHETrainer(model, args, train_dataset=tiny_data(8 * 20), mhe_config={"hidden_weight": 30.0})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hardly learnt")
        trainer.train()
    ratios = [ratio for record in records(trainer) if (ratio := record.get("mhe_gradient_ratio")) is not None]
    assert ratios[0] > 10 * ratios[-1]
    assert ratios[1] > max(DWARFS, ratios[0] / 2), "there was nothing to warn of"


@pytest.mark.slow
def test_taking_the_ratio_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The diagnosis would disturb what it looks at."""
    ends = []
    for taken in (True, False):
        monkeypatch.setattr("hf_mhe.training.regularizer.is_due", lambda evaluation, taken=taken: taken)
        trainer = MHETrainer(make_tiny(), logged_arguments(tmp_path), train_dataset=tiny_data(32), mhe_config=CONFIG)
        trainer.train()
        assert ("mhe_gradient_ratio" in records(trainer)[2]) is taken
        ends.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_all_frozen_in_the_middle_is_said_once() -> None:
    """The penalty would end without a word when the last regularized layer is frozen."""
    model = make_tiny().train()
    regularizer = MHERegularizer(model, MHEConfig(output_weight=0.0))
    loss = torch.zeros((), requires_grad=True)
    assert regularizer(loss) is not loss
    model.body.requires_grad_(False)
    model.middle.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"from optimizer step 2 on: nothing to regularize .* are frozen"):
        assert regularizer(loss) is loss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert regularizer(loss) is loss
    model.body.requires_grad_(True)
    assert regularizer(loss) is not loss


@pytest.mark.parametrize("name", CASES)
def test_evaluation_records_have_no_penalty(name: str, tmp_path: Path) -> None:
    """An evaluation's record would carry the numbers of the training step before it."""
    case = CASES[name]
    args = logged_arguments(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer = MHETrainer(case.make(), args, train_dataset=case.data(16), eval_dataset=case.data(8), mhe_config=CONFIG)
    trainer.train()
    plain = Trainer(trainer.model, logged_arguments(tmp_path), eval_dataset=case.data(8))
    evaluations = [record for record in trainer.state.log_history if "eval_loss" in record]
    assert len(evaluations) == 2
    assert not any(key.startswith("mhe") for record in evaluations for key in record)
    assert evaluations[-1]["eval_loss"] == plain.evaluate()["eval_loss"]

"""Schedules of lambda in a training: what each step gets, and that a resumed training goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_mhe import MHEConfig, MHEError, MHERegularizer, MHETrainer
from tests.training.cases import CASES, HIDDEN, OUTPUT, relative_difference, starting_gradient, tiny_data
from tests.training.loops import forget_accelerate
from tests.training.trainers import arguments, logged_arguments, records


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def test_a_loop_has_to_say_how_long_it_is() -> None:
    """Lambda would decay towards an end that nobody named."""
    model = CASES["tiny"].make()
    with pytest.raises(MHEError, match=r"schedule='cosine' .*MHERegularizer\(model, config, total_steps=\.\.\.\)"):
        MHERegularizer(model, MHEConfig(schedule="cosine"))
    for wrong in (0, -3, 2.5, "10"):
        with pytest.raises(MHEError, match="total_steps must be an integer >= 1"):
            MHERegularizer(model, MHEConfig(schedule="linear"), total_steps=wrong)  # type: ignore[arg-type]
    MHERegularizer(model, MHEConfig(warmup_steps=5))  # needs no end


SCHEDULES = {
    "every 2": MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT, every_n_steps=2),
    "warm-up and cosine": MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT, warmup_steps=2, schedule="cosine"),
}
# by hand: every second step counts twice; two steps of warm-up, then half a cosine over the other three of five
SHARES = {
    "every 2": [2, 0, 2, 0, 2],
    "warm-up and cosine": [0, 1 / 2, 1, (1 + math.cos(math.pi / 3)) / 2, (1 + math.cos(2 * math.pi / 3)) / 2],
}


class Gradients(TrainerCallback):
    """What the optimizer gets at each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self.steps.append({key: value.grad.clone() for key, value in model.named_parameters()})


@pytest.mark.story
@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_of_trainer_gets_its_share(name: str, accumulation: int, tmp_path: Path) -> None:
    """The schedule would count micro-batches, or be one step late."""
    case = CASES["tiny"]
    # 20 examples by threes: the last accumulation of the first epoch is short, and the steps go on in a second epoch
    args = arguments(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=accumulation, max_steps=5)
    found = []
    for cls, mhe in ((Trainer, {}), (MHETrainer, {"mhe_config": SCHEDULES[name]})):
        model, seen = case.make().double(), Gradients()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # so that every step starts from the same weights
        resting = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
        cls(model, args, train_dataset=case.data(20), optimizers=resting, callbacks=[seen], **mhe).train()
        found.append(seen.steps)
    assert [len(steps) for steps in found] == [5, 5]
    gradient = starting_gradient("tiny", HIDDEN, OUTPUT)
    for share, plain, regularized in zip(SHARES[name], *found, strict=True):
        added = {key: regularized[key] - plain[key] for key in plain}
        if share == 0:
            assert not any(value.any() for value in added.values())
        else:
            assert relative_difference(added, {key: share * value for key, value in gradient.items()}) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_hand_written_loop_gets_its_shares(name: str) -> None:
    """The same config would be another schedule without Trainer."""
    model = CASES["tiny"].make().double().train()
    gradient = starting_gradient("tiny", HIDDEN, OUTPUT)
    regularizer = MHERegularizer(model, SCHEDULES[name], total_steps=5)
    for share in SHARES[name]:
        model.zero_grad(set_to_none=False)
        for last in (False, True):
            loss = sum(parameter.sum() for parameter in model.parameters()) * 0
            regularizer(loss, sync=last).backward()
        found = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        if share == 0:
            assert not any(value.any() for value in found.values())
        else:
            assert relative_difference(found, {key: share * value for key, value in gradient.items()}) < 1e-9
    with torch.no_grad():
        regularizer(torch.zeros(()))
    assert regularizer.step == 5  # an evaluation is no step


RESUMED = MHEConfig(hidden_weight=0.7, output_weight=0.3, warmup_steps=2, schedule="cosine", every_n_steps=2)


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_the_schedule(tmp_path: Path) -> None:
    """A training that was interrupted would warm up again, and end in other weights."""
    data = tiny_data(64)
    args = logged_arguments(tmp_path, save_strategy="steps", save_steps=3, optim="adamw_torch")
    whole = MHETrainer(CASES["tiny"].make(), args, train_dataset=data, mhe_config=RESUMED)
    whole.train()
    resumed = MHETrainer(CASES["tiny"].make(seed=9), args, train_dataset=data, mhe_config=RESUMED)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for before, after in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(before, after)
    keys = ("mhe_loss", "mhe_score", "mhe_factor", "mhe_gradient_ratio")
    tails = [
        [{key: record[key] for key in keys if key in record} for record in records(trainer)[3:]]
        for trainer in (whole, resumed)
    ]
    assert tails[0] == tails[1]
    assert [record["mhe_factor"] for record in tails[0]] == [RESUMED.over(8).factor(step) for step in range(3, 8)]


class Loop:
    """A hand-written loop with dropout, which can be saved and loaded in the middle."""

    def __init__(self, seed: int) -> None:
        forget_accelerate()
        set_seed(seed)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model: Any = CASES["tiny"].make(seed)
        self.regularizer = MHERegularizer(model, RESUMED, total_steps=8)
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.05)
        loader: Any = DataLoader(tiny_data(64), batch_size=4)  # type: ignore[arg-type]
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.accelerator.register_for_checkpointing(self.regularizer)

    def run(self, first: int, last: int, folder: Path | None = None) -> None:
        self.model.train()
        for batch, inputs in enumerate(self.loader):
            if not first <= batch < last:
                continue
            with self.accelerator.accumulate(self.model):
                inputs["features"] = nn.functional.dropout(inputs["features"], 0.2)
                self.accelerator.backward(self.regularizer(self.model(**inputs).loss))
                self.optimizer.step()
                self.optimizer.zero_grad()
        if folder is not None:
            self.accelerator.save_state(str(folder))

    def parameters(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def test_accelerates_state_goes_on_with_the_schedule(tmp_path: Path) -> None:
    """`load_state` would restore everything but lambda."""
    whole = Loop(seed=0)
    whole.run(0, 6, tmp_path)
    whole.run(6, 16)
    resumed = Loop(seed=7)
    resumed.accelerator.load_state(str(tmp_path))
    assert resumed.regularizer.step == 3
    resumed.run(6, 16)
    assert resumed.regularizer.step == 8
    for before, after in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": 1.5}, {"steps": 3}, {"step": 1, "more": 2}, [3], None])
def test_another_objects_state_is_refused(state: Any) -> None:
    """A checkpoint with its objects in another order would set lambda's schedule to anything."""
    with pytest.raises(MHEError, match="step"):
        MHERegularizer(CASES["tiny"].make()).load_state_dict(state)

"""A training that was interrupted ends in the bits of one that was not, wherever it was cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hf_mhe import MHEConfig, MHERegularizer, MHETrainer
from tests.training.cases import TinyClassifier, TinyConfig, tiny_data
from tests.training.loops import forget_accelerate

WEIGHTS: dict[str, Any] = {"hidden_weight": 0.07, "output_weight": 0.03, "log_groups": True}
CONFIGS = {
    "constant": MHEConfig(**WEIGHTS),
    "scheduled": MHEConfig(**WEIGHTS, warmup_steps=5, schedule="cosine"),
    "every 3": MHEConfig(**WEIGHTS, warmup_steps=5, schedule="linear", every_n_steps=3),
    "budget": MHEConfig(**WEIGHTS, warmup_steps=3, budget=0.2),
    "projections": MHEConfig(**WEIGHTS, objective="comhe_random", objective_options={"dim": 3, "projections": 2}),
    "drawn groups": MHEConfig(**WEIGHTS, warmup_steps=3, budget=0.2, objective="srip"),
}
# 26 examples by twos, two micro-batches a step: 7 steps an epoch, the last of them of one micro-batch
COUNT, STEPS = 26, 14
CUTS = {2: "in the warm-up", 4: "in the middle of an epoch", 7: "between two epochs", 10: "in the second epoch"}


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


class Noisy(TinyClassifier):
    """With dropout, so that the random numbers have to be gone on with too."""

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Any:
        return super().forward(nn.functional.dropout(features, 0.2, self.training), labels)


def make(seed: int) -> Noisy:
    torch.manual_seed(seed)
    return Noisy(TinyConfig())


def check_same(whole: nn.Module, resumed: nn.Module) -> None:
    for name, value in whole.named_parameters():
        assert torch.equal(resumed.get_parameter(name), value), name


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2,
        learning_rate=0.05, optim="adamw_torch", use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1,
        seed=5, **changes,
    )  # fmt: skip


def penalties(trainer: Trainer, after: int) -> list[dict[str, float]]:
    """What the records after a step have of the penalty."""
    found = [record for record in trainer.state.log_history if "loss" in record and record["step"] > after]
    assert len(found) == STEPS - after
    return [{key: value for key, value in record.items() if "mhe" in key or key == "loss"} for record in found]


@pytest.mark.story
@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_trainer_goes_on(config: str, tmp_path: Path) -> None:
    """An interrupted training would warm up again, draw other groups, or count its steps from the wrong one."""
    whole = MHETrainer(
        make(0), arguments(tmp_path, save_steps=1), train_dataset=tiny_data(COUNT), mhe_config=CONFIGS[config]
    )
    whole.train()
    assert whole.state.global_step == STEPS
    for cut in CUTS:
        resumed = MHETrainer(
            make(9), arguments(tmp_path / "again", save_strategy="no"), train_dataset=tiny_data(COUNT),
            mhe_config=CONFIGS[config],
        )  # fmt: skip
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{cut}"))
        check_same(whole.model, resumed.model)
        assert penalties(resumed, cut) == penalties(whole, cut), CUTS[cut]


@pytest.mark.slow
def test_the_same_trainer_goes_on_after_another_training(tmp_path: Path) -> None:
    """Training on would begin with the steps, or the state, of the training before."""
    args = arguments(tmp_path, save_steps=4, save_total_limit=1)
    trainer = MHETrainer(make(0), args, train_dataset=tiny_data(COUNT), mhe_config=CONFIGS["every 3"])
    trainer.train()
    ended, last = [p.detach().clone() for p in trainer.model.parameters()], penalties(trainer, 12)
    trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(before, now) for before, now in zip(ended, trainer.model.parameters(), strict=True))
    assert penalties(trainer, 12) == last


class TooLarge(TinyClassifier):
    """Has no memory for more than two examples, in the forward pass or in the backward pass."""

    fails = "nowhere"

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Any:
        outputs = super().forward(features, labels)
        if len(features) > 2 and self.fails == "forward":
            self.fail()
        if len(features) > 2 and self.fails == "backward":
            outputs.loss.register_hook(self.fail)
        return outputs

    def fail(self, *gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")  # by which accelerate knows it


@pytest.mark.story
@pytest.mark.parametrize("config", [pytest.param("constant", marks=pytest.mark.engines), "budget"])
def test_a_training_that_starts_over_with_smaller_batches(config: str, tmp_path: Path) -> None:
    """The first step after an attempt that failed would have no penalty, or the attempts count as its operations."""
    ends = []
    for fails in ("nowhere", "forward", "backward"):
        torch.manual_seed(0)
        model = TooLarge(TinyConfig())
        model.fails = fails
        args = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=2 if fails == "nowhere" else 4, max_steps=4, optim="sgd",
            learning_rate=0.1, auto_find_batch_size=fails != "nowhere", use_cpu=True, report_to=[], save_strategy="no",
            disable_tqdm=True, logging_steps=1,
        )  # fmt: skip
        trainer = MHETrainer(model, args, train_dataset=tiny_data(16), mhe_config=CONFIGS[config])
        trainer.train()
        assert trainer.state.train_batch_size == 2
        records = [{k: r[k] for k in r if "mhe" in k} for r in trainer.state.log_history if "loss" in r]
        ends.append((records, [parameter.detach().clone() for parameter in model.parameters()]))
    for records, parameters in ends[1:]:
        assert records == ends[0][0]
        assert all(torch.equal(*pair) for pair in zip(parameters, ends[0][1], strict=True))


class Loop:
    """A hand-written loop with accelerate, saved and loaded by it."""

    def __init__(self, seed: int, config: MHEConfig) -> None:
        forget_accelerate()
        set_seed(seed)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model: Any = make(seed)
        self.regularizer = MHERegularizer(model, config, total_steps=STEPS)
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.05)
        loader: Any = DataLoader(tiny_data(COUNT), batch_size=2, shuffle=True)  # type: ignore[arg-type]
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.accelerator.register_for_checkpointing(self.regularizer)

    def run(self, folder: Path | None = None, done: int = 0) -> None:
        """Train to the end from after `done` steps, saving after each step."""
        self.model.train()
        for epoch in range(done // 7, 2):
            set_seed(100 + epoch)  # of the order of the examples, which is not the penalty's to restore
            self.loader.set_epoch(epoch)
            skipped = 2 * (done - 7 * epoch) if done > 7 * epoch else 0
            loader = self.accelerator.skip_first_batches(self.loader, skipped) if skipped else self.loader
            for inputs in loader:
                with self.accelerator.accumulate(self.model):
                    set_seed(1000 + self.regularizer.step)  # of the dropout
                    self.accelerator.backward(self.regularizer(self.model(**inputs).loss))
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if folder is not None and self.accelerator.sync_gradients:
                    self.accelerator.save_state(str(folder / str(self.regularizer.step)))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_accelerates_state_goes_on(config: str, tmp_path: Path) -> None:
    """`load_state` would restore everything but lambda, or but the draws."""
    whole = Loop(0, CONFIGS[config])
    whole.run(tmp_path)
    assert whole.regularizer.step == STEPS
    for cut in CUTS:
        resumed = Loop(9, CONFIGS[config])
        resumed.accelerator.load_state(str(tmp_path / str(cut)))
        assert resumed.regularizer.step == cut
        resumed.run(done=cut)
        check_same(whole.model, resumed.model)
        assert resumed.regularizer.step == STEPS

"""A whole training with MHETrainer: what it logs, saves, resumes, evaluates and refuses."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from hf_mhe import MHEConfig, MHEError, MHERegularizer, MHETrainer, with_mhe
from tests.training.cases import CASES, CONFIG, make_tiny, slow_penalty, tiny_data
from tests.training.trainers import logged_arguments, records


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logs_keep_the_task_loss_and_add_the_penalty(name: str, tmp_path: Path) -> None:
    """Loss curves with and without MHE could not be compared, and nobody would see what the penalty does."""
    case = CASES[name]
    plain = Trainer(case.make(), logged_arguments(tmp_path), train_dataset=case.data(16))
    plain.train()
    start = case.make()
    trainer = MHETrainer(case.make(), logged_arguments(tmp_path), train_dataset=case.data(16), mhe_config=CONFIG)
    trainer.train()
    first = records(trainer)[0]
    assert first["loss"] == pytest.approx(records(plain)[0]["loss"], abs=1e-6)
    assert first["mhe_loss"] == pytest.approx(slow_penalty(case.terms(start, 0.7, 0.3)).item(), rel=1e-5)
    unweighted = slow_penalty(case.terms(start, 1.0, 1.0)).item() / len(case.terms(start, 1.0, 1.0))
    assert first["mhe_mean_energy"] == pytest.approx(unweighted, rel=1e-5)
    assert len(records(trainer)) == 2
    assert records(trainer)[1]["mhe_loss"] < first["mhe_loss"]


@pytest.mark.slow
def test_a_record_is_the_mean_over_its_steps(tmp_path: Path) -> None:
    """With logging every N steps the curve would show a sum, or only the last step."""
    data = tiny_data(32)
    every = MHETrainer(make_tiny(), logged_arguments(tmp_path), train_dataset=data, mhe_config=CONFIG)
    halved = logged_arguments(tmp_path, logging_steps=2)
    second = MHETrainer(make_tiny(), halved, train_dataset=data, mhe_config=CONFIG)
    every.train()
    second.train()
    singles = [record["mhe_loss"] for record in records(every)]
    pairs = [(singles[0] + singles[1]) / 2, (singles[2] + singles[3]) / 2]
    assert [record["mhe_loss"] for record in records(second)] == pytest.approx(pairs, rel=1e-6)


def test_evaluation_and_prediction_never_see_the_penalty(tmp_path: Path) -> None:
    """An eval loss with MHE would be larger than one without, for the same model."""
    data, model = tiny_data(8), make_tiny()
    args = logged_arguments(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer = MHETrainer(model, args, train_dataset=tiny_data(16), eval_dataset=data, mhe_config=CONFIG)
    plain = Trainer(model, logged_arguments(tmp_path), eval_dataset=data)
    assert set(trainer.evaluate()) == set(plain.evaluate())
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    assert trainer.predict(data).metrics["test_loss"] == plain.predict(data).metrics["test_loss"]
    trainer.train()
    during = [record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record]
    assert during[-1] == plain.evaluate()["eval_loss"]


def test_config_lies_beside_every_checkpoint(tmp_path: Path) -> None:
    """A checkpoint taken from the middle of the training would not say how it was trained."""
    args = logged_arguments(tmp_path, save_strategy="steps", save_steps=1)
    trainer = MHETrainer(make_tiny(), args, train_dataset=tiny_data(16), mhe_config=CONFIG)
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    for folder in ("checkpoint-1", "checkpoint-2", "elsewhere", "."):
        assert MHEConfig.from_pretrained(tmp_path / folder) == CONFIG
        assert (tmp_path / folder / "model.safetensors").is_file()


@pytest.mark.slow
def test_resume_continues_as_if_never_stopped(tmp_path: Path) -> None:
    """A training that was interrupted would end in other weights than one that was not."""
    data = tiny_data(48)
    args = logged_arguments(tmp_path / "whole", save_strategy="steps", save_steps=2, optim="adamw_torch")
    whole = MHETrainer(make_tiny(), args, train_dataset=data, mhe_config=CONFIG)
    whole.train()
    resumed = MHETrainer(make_tiny(seed=9), args, train_dataset=data, mhe_config=CONFIG)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for before, after in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(before, after)
    tail = [record["mhe_loss"] for record in records(whole)][2:]
    assert [record["mhe_loss"] for record in records(resumed)][2:] == tail


@pytest.mark.slow
def test_model_init_is_followed(tmp_path: Path) -> None:
    """`model_init` makes a new model for each training: the penalty would pull at the one that is thrown away."""

    def model_init() -> nn.Module:
        return make_tiny()

    args = logged_arguments(tmp_path, max_steps=1)
    trainer = MHETrainer(None, args, model_init=model_init, train_dataset=tiny_data(16), mhe_config=CONFIG)
    first = trainer.mhe_regularizer
    assert isinstance(first, MHERegularizer)
    trainer.train()
    assert trainer.mhe_regularizer.model is trainer.model
    assert trainer.mhe_regularizer is not first
    plain = Trainer(None, args, model_init=model_init, train_dataset=tiny_data(16))
    plain.train()
    assert not torch.equal(plain.model.body.weight, trainer.model.body.weight)


def test_classes_are_made_once_and_pickle() -> None:
    """Trainers are sent to worker processes by hyper-parameter searches, and `isinstance` has to hold."""
    assert pickle.loads(pickle.dumps(MHETrainer)) is MHETrainer
    assert with_mhe(Trainer) is MHETrainer
    assert with_mhe(MHETrainer) is MHETrainer
    made = with_mhe(Seq2SeqTrainer)
    assert made is with_mhe(Seq2SeqTrainer)
    assert made.__name__ == "MHESeq2SeqTrainer"
    assert issubclass(made, Seq2SeqTrainer)
    for wrong in (nn.Linear, make_tiny(), "Trainer", None, []):
        with pytest.raises(MHEError, match="with_mhe needs transformers"):
            with_mhe(wrong)  # type: ignore[arg-type]


def test_seq2seq_trainer(tmp_path: Path) -> None:
    """Another Trainer class would lose its own behaviour, or train without the penalty."""
    case = CASES["gpt2"]
    args = logged_arguments(tmp_path, Seq2SeqTrainingArguments)
    trainer = with_mhe(Seq2SeqTrainer)(case.make(), args, train_dataset=case.data(16), mhe_config=CONFIG.to_dict())
    trainer.train()
    expected = slow_penalty(case.terms(case.make(), 0.7, 0.3)).item()
    assert records(trainer)[0]["mhe_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_trainer_with_its_own_backward_is_refused(tmp_path: Path) -> None:
    """The penalty would be left out, and nothing would say so."""

    class Own(Trainer):
        def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            loss = self.compute_loss(model, inputs)
            loss.backward()
            return loss.detach()

    trainer = with_mhe(Own)(make_tiny(), logged_arguments(tmp_path), train_dataset=tiny_data(16))
    with pytest.raises(MHEError, match=r"MHEOwn.training_step did not call self.accelerator.backward"):
        trainer.train()
    assert "backward" not in vars(trainer.accelerator)


def test_bad_input_is_refused_at_construction(tmp_path: Path) -> None:
    """The user would find out after the data was loaded and the first steps were made."""
    args = logged_arguments(tmp_path)
    with pytest.raises(MHEError, match="hidden_weight must be a finite number >= 0; got -1"):
        MHETrainer(make_tiny(), args, mhe_config={"hidden_weight": -1})
    with pytest.raises(MHEError, match="no field 'lambda'"):
        MHETrainer(make_tiny(), args, mhe_config={"lambda": 1})
    with pytest.raises(MHEError, match="no group has a weight above 0"):
        MHETrainer(make_tiny(), args, mhe_config={"hidden_weight": 0, "output_weight": 0, "embedding_weight": 1})
    args._n_gpu = 4
    with pytest.raises(MHEError, match=r"DataParallel \(4 GPUs in one process\).*torchrun --nproc_per_node 4"):
        MHETrainer(make_tiny(), args)


@pytest.mark.slow
def test_real_weights_take_a_step(minilm_path: Path, tmp_path: Path) -> None:
    """It would work on toys alone: MiniLM's energies are the published ones, and one step lowers them."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=3)
    generator = torch.Generator().manual_seed(0)
    data = [
        {"input_ids": torch.randint(1000, 2000, (12,), generator=generator), "labels": index % 3} for index in range(8)
    ]
    config = MHEConfig(space="full", hidden_weight=1.0, exclude="*.attention.*")
    trainer = MHETrainer(model, logged_arguments(tmp_path, learning_rate=1.0), train_dataset=data, mhe_config=config)
    before = trainer.mhe_regularizer.energies()
    assert before["bert.encoder.layer.0.intermediate.dense"] == pytest.approx(0.5191, abs=5e-5)
    assert before["bert.encoder.layer.5.output.dense"] == pytest.approx(0.4998, abs=5e-5)
    trainer.train()
    after = trainer.mhe_regularizer.energies()
    name = "bert.encoder.layer.0.intermediate.dense"
    assert after[name] < before[name]
    assert math.isfinite(records(trainer)[0]["mhe_loss"])
    assert records(trainer)[0]["mhe_loss"] == pytest.approx(sum(before.values()), rel=1e-5)

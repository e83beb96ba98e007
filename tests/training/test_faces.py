"""Seq2SeqTrainer with MHE: what a step adds to the parameters is the formula's gradient; generation is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from hf_mhe import with_mhe
from tests.training.faces import CONFIG, WORDS, check_a_step, make_tokenizer, settings, whole
from tests.training.loops import forget_accelerate


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def make_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(WORDS), d_model=8, d_kv=4, num_heads=2, d_ff=12, num_layers=1, num_decoder_layers=1,
            dropout_rate=0.0, initializer_factor=0.3, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
        )
    ).double()  # fmt: skip


def sentences(count: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(4, len(WORDS), (5,), generator=generator).tolist(),
            "labels": torch.randint(4, len(WORDS), (3 + index % 2,), generator=generator).tolist(),
        }
        for index in range(count)
    ]


def seq2seq(folder: Path, accumulation: int, **changes: Any) -> Callable[[type[Trainer], dict[str, Any]], Trainer]:
    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        model = make_t5()
        args = Seq2SeqTrainingArguments(
            **settings(folder, accumulation, predict_with_generate=True, generation_max_length=6, **changes)
        )
        return cls(
            model,
            args,
            train_dataset=sentences(8),
            eval_dataset=sentences(4),
            data_collator=DataCollatorForSeq2Seq(make_tokenizer(), model=model),
            **mhe,
        )

    return make


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [4, whole(1)])
def test_seq2seq_trainer(accumulation: int, tmp_path: Path) -> None:
    """An encoder and decoder would be regularized by halves, or by another lambda."""
    check_a_step(Seq2SeqTrainer, seq2seq(tmp_path, accumulation), count=16)


@pytest.mark.slow
def test_generated_predictions_do_not_see_the_penalty(tmp_path: Path) -> None:
    """A score of generated text, taken in the middle of a training with MHE, would be of another model."""
    make = seq2seq(tmp_path, 2, eval_strategy="steps", eval_steps=1, max_steps=2, label_smoothing_factor=0.1)
    trainer = make(with_mhe(Seq2SeqTrainer), {"mhe_config": CONFIG})
    trainer.train()
    steps = trainer.mhe_regularizer.step
    plain = make(Seq2SeqTrainer, {})
    plain.model.load_state_dict(trainer.model.state_dict())
    ours, theirs = trainer.predict(sentences(4)), plain.predict(sentences(4))
    assert (ours.predictions == theirs.predictions).all()
    assert ours.metrics["test_loss"] == theirs.metrics["test_loss"] == plain.evaluate(sentences(4))["eval_loss"]
    evaluations = [record for record in trainer.state.log_history if "eval_loss" in record]
    assert len(evaluations) == 2
    assert evaluations[-1]["eval_loss"] == plain.evaluate()["eval_loss"]
    assert not any("mhe" in key for record in evaluations for key in record)
    assert steps == trainer.mhe_regularizer.step == 2

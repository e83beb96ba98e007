"""Ten real steps of SentenceTransformerTrainer on MiniLM, with and without the energy of its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_mhe import equivalent_dimension
from hf_mhe.integrations.sentence_transformers import EnergyRegularizedLoss

pytestmark = [pytest.mark.integrations, pytest.mark.slow]

sentence_transformers = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.losses")

STEPS, BATCH = 10, 8
SUBJECTS = ["a cat", "the teacher", "my neighbour", "an engineer", "the old sailor", "a child", "the cook", "a nurse"]
DEEDS = ["reads a long book", "walks home in the rain", "repairs the broken clock", "sings in the kitchen"]
PAIRS = [(f"{who} {does}.", f"What does {who} do? It {does}.") for who in SUBJECTS for does in DEEDS]

LOSSES: dict[str, Callable[[Any], Any]] = {
    "ranking": lambda m: losses.MultipleNegativesRankingLoss(m),
    "cached": lambda m: losses.CachedMultipleNegativesRankingLoss(m, mini_batch_size=3),
    "matryoshka": lambda m: losses.MatryoshkaLoss(m, losses.MultipleNegativesRankingLoss(m), [384, 128, 64]),
    "cached matryoshka": lambda m: losses.MatryoshkaLoss(
        m, losses.CachedMultipleNegativesRankingLoss(m, mini_batch_size=3), [384, 128, 64]
    ),
}


def train(folder: Path, minilm: Path, make: Callable[[Any], Any], weight: float) -> tuple[Any, list[dict[str, float]]]:
    """The trainer after ten steps, and its records of them."""
    from datasets import Dataset

    model = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    columns = {"anchor": [pair[0] for pair in PAIRS], "positive": [pair[1] for pair in PAIRS]}
    options = sentence_transformers.SentenceTransformerTrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=1e-4,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=STEPS,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=options,
        train_dataset=Dataset.from_dict(columns),
        eval_dataset=Dataset.from_dict({name: rows[:BATCH] for name, rows in columns.items()}),
        loss=EnergyRegularizedLoss(make(model), weight),
    )
    trainer.train()
    return trainer, trainer.state.log_history


def crowding(model: Any) -> float:
    return equivalent_dimension(model.encode([pair[0] for pair in PAIRS], convert_to_tensor=True))


@pytest.mark.parametrize("name", LOSSES)
def test_ten_steps_spread_the_embeddings(name: str, minilm_path: Path, tmp_path: Path) -> None:
    """The energy would be logged and not trained, or trained and not logged."""
    before = crowding(sentence_transformers.SentenceTransformer(str(minilm_path), device="cpu"))
    plain, _ = train(tmp_path / "plain", minilm_path, LOSSES[name], 0.0)
    trainer, history = train(tmp_path / "spread", minilm_path, LOSSES[name], 5.0)
    steps = [record for record in history if "loss" in record]
    assert len(steps) == STEPS
    for record in steps:
        assert record["base_loss"] + record["energy_loss"] == pytest.approx(record["loss"], abs=2e-4)
    assert steps[-1]["energy_loss"] < steps[0]["energy_loss"]
    after = crowding(trainer.model)
    print(f"{name}: {before:.2f}, plain {crowding(plain.model):.2f}, spread {after:.2f}; {steps[0]}, {steps[-1]}")
    assert after > 1.05 * before
    assert after > 1.02 * crowding(plain.model)
    (evaluated,) = [record for record in history if "eval_loss" in record]
    assert evaluated["eval_base_loss"] + evaluated["eval_energy_loss"] == pytest.approx(
        evaluated["eval_loss"], abs=2e-4
    )


def test_the_model_card_names_the_loss(minilm_path: Path, tmp_path: Path) -> None:
    """A model would be published without a word of what its embeddings were trained with."""
    trainer, _ = train(tmp_path, minilm_path, LOSSES["matryoshka"], 0.5)
    trainer.model.model_card_data.generate_widget_examples = False
    trainer.save_model(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    for said in (
        "<code>hf_mhe.integrations.sentence_transformers.EnergyRegularizedLoss</code>",
        '"weight": 0.5',
        '"loss": "MatryoshkaLoss(',
        "- loss:EnergyRegularizedLoss",
        "- loss:MatryoshkaLoss",
        "- loss:MultipleNegativesRankingLoss",
        "#### EnergyRegularizedLoss\n```bibtex",
        "Learning towards Minimum Hyperspherical Energy",
        "Matryoshka Representation Learning",
    ):
        assert said in card, said
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    texts = [pair[0] for pair in PAIRS[:3]]
    difference = again.encode(texts, convert_to_tensor=True) - trainer.model.encode(texts, convert_to_tensor=True)
    assert torch.all(difference.abs() < 1e-5)

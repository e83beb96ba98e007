"""Ten real steps of SentenceTransformerTrainer on MiniLM, with and without the energy of its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_mhe import EnergyLoss, equivalent_dimension
from hf_mhe.integrations.sentence_transformers import EnergyRegularizedLoss

pytestmark = [pytest.mark.integrations, pytest.mark.slow]

sentence_transformers = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.losses")

STEPS, BATCH, WEIGHT = 10, 8, 20.0
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


def spread_of(model: Any) -> tuple[float, float]:
    """The energy of all texts, those of one example left out among each other, and their equivalent dimension."""
    texts = [text for pair in PAIRS for text in pair]
    rows = model.encode(texts, convert_to_tensor=True)
    return EnergyLoss()(rows, torch.arange(len(rows)) // 2).item(), equivalent_dimension(rows)


def check_records(history: list[dict[str, float]]) -> None:
    """The parts of each step's loss, and of an evaluation's, are logged and add up."""
    steps = [record for record in history if "loss" in record]
    assert len(steps) == STEPS
    for record in steps:
        assert record["base_loss"] + record["energy_loss"] == pytest.approx(record["loss"], abs=2e-4)
    (evaluated,) = [record for record in history if "eval_loss" in record]
    parts = evaluated["eval_base_loss"] + evaluated["eval_energy_loss"]
    assert parts == pytest.approx(evaluated["eval_loss"], abs=2e-4)


@pytest.mark.story
@pytest.mark.parametrize("name", LOSSES)
def test_ten_steps_spread_the_embeddings(name: str, minilm_path: Path, tmp_path: Path) -> None:
    """The energy would be logged and not trained, or trained and not logged."""
    before = spread_of(sentence_transformers.SentenceTransformer(str(minilm_path), device="cpu"))
    trainer, history = train(tmp_path, minilm_path, LOSSES[name], WEIGHT)
    check_records(history)
    after = spread_of(trainer.model)
    print(f"{name}: energy {before[0]:.4f} to {after[0]:.4f}, dimension {before[1]:.2f} to {after[1]:.2f}")
    assert after[0] < 0.9 * before[0]
    assert after[1] > 1.2 * before[1]


@pytest.mark.story
def test_the_energy_does_more_than_the_loss_does(minilm_path: Path, tmp_path: Path) -> None:
    """What spreads the embeddings would be the contrastive loss, and the energy beside it would do nothing."""
    found = {}
    for weight in (0.0, WEIGHT):
        trainer, _ = train(tmp_path / str(weight), minilm_path, LOSSES["ranking"], weight)
        found[weight] = spread_of(trainer.model)
    print(f"plain {found[0.0]}, with the energy {found[WEIGHT]}")
    assert found[WEIGHT][0] < found[0.0][0] - 0.002


@pytest.mark.story
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

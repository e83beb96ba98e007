"""`hf-mhe compare` on what people compare most: a base model, and the same model fine-tuned under a head."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Run = Callable[..., subprocess.CompletedProcess[str]]


WORDS = 3000  # of MiniLM's 30,522, or the walk over its word table would be most of the test


@pytest.fixture(scope="module")
def base(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with a part of its vocabulary."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(minilm_path)
    model.resize_token_embeddings(WORDS)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fine_tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM under a classification head, after a few steps that move every layer."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens = torch.randint(WORDS, (8, 12), generator=generator)
        labels = torch.randint(3, (8,), generator=generator)
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("fine_tuned")
    model.save_pretrained(folder)
    return folder


def assert_matched(comparison: dict) -> None:
    """All 40 matrices of MiniLM: six layers of six, three tables and the pooler; only the new head stands alone."""
    names = {row["before"]["name"]: row["name"] for row in comparison["rows"]}
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    layer = {f"encoder.layer.{k}.{part}" for k in range(6) for part in (*parts, "intermediate.dense", "output.dense")}
    tables = {f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")}
    assert set(names) == layer | tables | {"pooler.dense"}
    assert all(after == f"bert.{before}" for before, after in names.items())
    assert (comparison["only_before"], comparison["only_after"]) == ([], ["classifier"])
    moved = [row for row in comparison["rows"] if row["verdict"] in ("improved", "worsened")]
    assert len(moved) >= 36


@pytest.mark.slow
def test_a_fine_tuned_model_is_compared_with_its_base(
    hf_mhe: Run, base: Path, fine_tuned: Path, tmp_path: Path
) -> None:
    """Else the first thing that one asks of the program, what fine-tuning did, ends in "no group in common"."""
    folders = tmp_path / "folders.json"
    done = hf_mhe("compare", base, fine_tuned, "--json", folders)
    assert done.returncode == 0, done.stderr
    assert "40 layers; mean spread" in done.stdout
    assert "note: 40 layers go by other names on the two sides" in done.stderr
    assert "only after: classifier" in done.stderr
    assert_matched(json.loads(folders.read_text()))

    saved = []
    for side, folder in (("before", base), ("after", fine_tuned)):
        saved.append(tmp_path / f"{side}.json")
        assert hf_mhe("analyze", folder, "--json", saved[-1]).returncode == 0
    reports = tmp_path / "reports.json"
    done = hf_mhe("compare", *saved, "--json", reports)
    assert done.returncode == 0, done.stderr
    assert json.loads(reports.read_text()) == json.loads(folders.read_text())


def test_nothing_in_common_is_bad_input(refused: Callable[..., str], two_layers: Path) -> None:
    """Else a comparison of two strangers would pass in a script as one that was made."""
    stranger, report = two_layers.parent / "stranger.safetensors", two_layers.parent / "comparison.json"
    save_file({"stranger.weight": torch.randn(6, 4)}, stranger)
    assert "no group in common" in refused("compare", two_layers, stranger, "--json", report)
    assert not report.exists()

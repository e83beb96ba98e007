"""Folders that sentence-transformers saves: a transformer alone, and one with further layers behind it."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

import hf_mhe
from tests.alike import assert_alike

sentence_transformers = pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.integrations

WORDS = "embeddings.word_embeddings"


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with a tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def _model(transformer: Path, *layers: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that moved inside the library
        from sentence_transformers import models

        torch.manual_seed(0)
        parts = [models.Transformer(str(transformer)), models.Pooling(24), *(layer(models) for layer in layers)]
    return sentence_transformers.SentenceTransformer(modules=parts, device="cpu")


@pytest.fixture(scope="module")
def with_dense(transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A SentenceTransformer with a Dense layer behind the pooling, and its folder."""
    model = _model(transformer, lambda models: models.Dense(24, 10), lambda models: models.Normalize())
    folder = tmp_path_factory.mktemp("dense")
    model.save(str(folder))
    return model, folder


@pytest.mark.slow
def test_minilm_is_one_transformer_under_three_faces(minilm_path: Path) -> None:
    """If this fails, the most used sentence encoder has other layers as a folder than once it is loaded."""
    found = hf_mhe.analyze(minilm_path, exclude=WORDS, by_head=True)
    model = sentence_transformers.SentenceTransformer(str(minilm_path), device="cpu")
    assert_alike(hf_mhe.analyze(model, exclude=WORDS, by_head=True), found)
    assert "encoder.layer.0.attention.self.query.head.11" in {group.name for group in found.groups}


def test_layers_behind_the_transformer_are_read_too(with_dense: tuple[Any, Path]) -> None:
    """If this fails, the Dense layer of a sentence encoder, in a folder of its own, is overlooked."""
    model, folder = with_dense
    found = hf_mhe.analyze(folder)
    assert_alike(hf_mhe.analyze(model), found)
    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert_alike(hf_mhe.analyze(loaded), found)
    names = {group.name for group in found.groups}
    assert "2.linear" in names
    assert all(name.startswith("0.") for name in names - {"2.linear"})
    assert (found["2.linear"].n, found["2.linear"].d, found["2.linear"].kind) == (10, 24, "linear")
    # by the names of the model that a user holds
    assert {name for name, _ in model.named_modules()} >= names


def _token_layers(models: Any) -> dict[str, list[Any]]:
    """Modules between the transformer and the pooling that keep their config under a name of their own."""
    return {
        "lstm": [models.LSTM(24, 6), models.Pooling(12)],
        "conv1d": [models.CNN(24, 6, kernel_sizes=[1, 3]), models.Pooling(12)],
    }


@pytest.mark.parametrize("kind", ["lstm", "conv1d"])
def test_layers_between_the_transformer_and_the_pooling(kind: str, transformer: Path, tmp_path: Path) -> None:
    """If this fails, recurrent and convolutional layers of sentence-transformers are read by shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import models

        torch.manual_seed(0)
        parts = [models.Transformer(str(transformer)), *_token_layers(models)[kind]]
    model = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    model.save(str(tmp_path))
    found = hf_mhe.analyze(tmp_path)
    assert_alike(hf_mhe.analyze(model), found)
    assert {group.kind for group in found.groups if group.name.startswith("1.")} == {kind}


def test_code_of_a_module_is_never_run(with_dense: tuple[Any, Path], tmp_path: Path) -> None:
    """If this fails, analyzing a stranger's sentence encoder executes the stranger's code."""
    folder = shutil.copytree(with_dense[1], tmp_path / "copy")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "evil.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    found = hf_mhe.analyze(folder)
    assert found["2.linear"].kind == "unknown"
    assert len(found.notes) == 1
    assert found.notes[0].startswith("2: ")
    assert "evil" not in sys.modules


def test_without_sentence_transformers_the_package_is_named(
    with_dense: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a user without sentence-transformers loses the transformer's layers too, or gets a traceback."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sentence_transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    found = hf_mhe.analyze(with_dense[1])
    assert {group.kind for group in found.groups if group.name.startswith("0.")} == {"linear", "embedding"}
    assert found["2.linear"].kind == "unknown"
    (note,) = found.notes
    assert "sentence-transformers, which is not installed: pip install sentence-transformers" in note

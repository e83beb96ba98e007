"""`hf-mhe analyze` on vectors: arrays of numpy and columns of datasets."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hf_mhe as package

Run = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., str]


@pytest.fixture
def vectors(tmp_path: Path) -> np.ndarray:
    """Sixty vectors, of which two are one direction, as `vectors.npy` and in all other forms."""
    matrix = np.random.default_rng(2).standard_normal((60, 8)).astype(np.float32)
    matrix[9] = 2 * matrix[4]
    np.save(tmp_path / "vectors.npy", matrix)
    save_file({"vectors": torch.from_numpy(matrix), "others": torch.eye(8)}, tmp_path / "vectors.safetensors")
    features = datasets.Features({"id": datasets.Value("int64"), "vectors": datasets.List(datasets.Value("float32"))})
    made = datasets.Dataset.from_dict({"id": range(60), "vectors": list(matrix)}, features=features)
    made.save_to_disk(tmp_path / "vectors")
    made.to_parquet(tmp_path / "vectors.parquet")
    made.to_json(tmp_path / "vectors.jsonl")
    return matrix


@pytest.mark.parametrize(
    "arguments",
    [
        ["vectors.npy"],
        ["vectors.safetensors", "--include", "vectors"],
        ["vectors", "--column", "vectors"],
        ["vectors.parquet"],
        ["vectors.jsonl", "--column", "vectors"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_vectors_are_analyzed(hf_mhe: Run, vectors: np.ndarray, arguments: list[str]) -> None:
    """Else the program would be for models alone, and embeddings need a script."""
    printed = json.loads(hf_mhe("analyze", *arguments, "--json", "-").stdout)
    (row,) = printed["groups"]
    expected = package.measure(vectors)
    assert printed["source"] == arguments[0]
    assert (row["name"], row["n"], row["d"], row["nearest_pair"]) == ("vectors", 60, 8, [4, 9])
    assert row["energy"] == pytest.approx(expected.energy, rel=1e-6)
    table = hf_mhe("analyze", *arguments)
    assert table.returncode == 0, table.stderr
    assert "60 neurons" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vectors.parquet", "--column", "vector"], "'vector'"),
        (["vectors", "--column", "id"], "int64"),
        (["vectors.npy", "--column", "vectors"], "no columns"),
        (["vectors.safetensors", "--column", "vectors"], "only a dataset"),
        (["gone.npy"], "gone.npy"),
        (["broken.npy"], "broken.npy"),
    ],
)
@pytest.mark.usefixtures("vectors")
def test_bad_input_is_one_line(refused: Refused, tmp_path: Path, arguments: list[str], said: str) -> None:
    """Else a wrong column would end in a traceback of Arrow."""
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    assert said in refused("analyze", *arguments)

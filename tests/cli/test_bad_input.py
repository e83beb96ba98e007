"""Bad input is one clear line on stderr and exit status 2: no traceback, nothing on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Refused = Callable[..., str]


@pytest.mark.slow
def test_a_path_that_is_not_there(refused_in_process: Refused) -> None:
    """Else a typo in a path would be looked up on the Hub, or end in a traceback."""
    assert "no/such/folder" in refused_in_process("analyze", "no/such/folder")


@pytest.mark.slow
def test_a_name_that_is_no_repository_in_the_cache(refused_in_process: Refused) -> None:
    """Else offline machines would get a stack of HTTP errors instead of the reason."""
    line = refused_in_process("analyze", "nobody/nothing")
    assert "nobody/nothing" in line
    assert "HF_HUB_OFFLINE" in line


def test_a_folder_without_weights(refused: Refused, tmp_path: Path) -> None:
    """Else an empty table would pass for a result."""
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert "safetensors" in refused("analyze", folder)


def test_a_truncated_file(refused: Refused, tmp_path: Path) -> None:
    """Else half a download would be measured, or crash deep inside."""
    file = tmp_path / "model.safetensors"
    save_file({"layer.weight": torch.randn(64, 32)}, file)
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refused("analyze", file)


def test_an_index_that_names_a_missing_shard(refused: Refused, tmp_path: Path) -> None:
    """Else the layers of a shard that was never downloaded would silently be left out of the mean."""
    shard = "model-00001-of-00002.safetensors"
    save_file({"a.weight": torch.randn(8, 4)}, tmp_path / shard)
    index = {"metadata": {}, "weight_map": {"a.weight": shard, "b.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refused("analyze", tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle(refused: Refused, tmp_path: Path, name: str) -> None:
    """Else looking at a stranger's checkpoint would run the stranger's code."""
    torch.save({"layer.weight": torch.randn(8, 4)}, tmp_path / name)
    line = refused("analyze", tmp_path / name)
    assert name in line
    assert "pickle" in line
    assert "save_pretrained" in line  # how to convert it


@pytest.mark.slow
def test_a_tensor_with_nan_is_named(refused_in_process: Refused, tmp_path: Path) -> None:
    """Else one diverged layer would turn the whole summary into NaN, and nobody would know which."""
    broken = torch.randn(8, 4)
    broken[3, 1] = torch.nan
    save_file({"good.weight": torch.randn(8, 4), "broken.weight": broken}, tmp_path / "model.safetensors")
    assert "broken.weight" in refused_in_process("analyze", tmp_path / "model.safetensors")


def test_one_neuron_only(refused: Refused, tmp_path: Path) -> None:
    """Else a layer without a pair would be given an energy."""
    save_file({"layer.weight": torch.randn(1, 4)}, tmp_path / "model.safetensors")
    line = refused("analyze", tmp_path / "model.safetensors")
    assert "layer.weight" in line
    assert "one neuron" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--distance", "manhattan"], ["--distance", "manhattan", "euclidean", "angular"]),
        (["--space", "third"], ["--space", "third", "full", "half"]),
        (["--s", "-1"], ["-1", ">= 0"]),
        (["--s", "two"], ["--s", "number"]),
        (["--fail-above", "nan"], ["--fail-above", "nan"]),
        (["--top", "0"], ["--top"]),
        (["--json", "nowhere/report.json"], ["nowhere", "does not exist"]),
        (["--json", "same", "--csv", "same"], ["--json", "--csv"]),
        (["--plot", "scores.bmp"], ["scores.bmp", ".png, .svg, .pdf"]),
        (["--no-such-option"], ["--no-such-option"]),
    ],
)
def test_an_option_that_cannot_be_meant(
    refused: Refused, minilm_path: Path, arguments: list[str], told: list[str]
) -> None:
    """Else a misspelt option would be ignored, or found out only after minutes of analysis."""
    line = refused("analyze", minilm_path, *arguments)
    assert [word for word in told if word not in line] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["analyze"], "MODEL"),
        (["compare", "one"], "AFTER"),
        (["push", "folder"], "REPO_ID"),
        (["frobnicate"], "frobnicate"),
        (["quickstart", "--epochs", "0"], "--epochs"),
        (["quickstart", "--seed", "-1"], "--seed"),
        (["push", "nowhere", "alice/model"], "nowhere"),
        (["push", ".", "not a repo id"], "not a repo id"),
        (["quickstart", "--push-to-hub", "norepo"], "norepo"),
    ],
)
def test_a_command_line_that_cannot_be_meant(refused: Refused, arguments: list[str], told: str) -> None:
    """Else a script would take a usage error for a result."""
    assert told in refused(*arguments)


def test_a_pattern_that_matches_nothing(refused: Refused, two_layers: Path) -> None:
    """Else a typo in a pattern would be an analysis of nothing."""
    assert "decodr.*" in refused("analyze", two_layers, "--include", "decodr.*")


def test_a_limit_that_cannot_be_checked(refused: Refused, tmp_path: Path) -> None:
    """Else a gate in CI would pass because there was no score to hold against it: for d = 3, s = 2 all diverge."""
    save_file({"layer.weight": torch.randn(8, 3)}, tmp_path / "model.safetensors")
    assert "--fail-above" in refused("analyze", tmp_path / "model.safetensors", "--fail-above", "1.5")

"""Weights that accelerate keeps on the CPU or on disk: measured where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import hf_mhe
from hf_mhe.errors import MHEError
from tests.analysis.damaged import same


@pytest.fixture(scope="module")
def gpt2() -> Any:
    torch.manual_seed(0)
    size = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **size)).eval()


def _map(place: str) -> dict[str, str]:
    parts = ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head", "transformer.h.0")
    return {**dict.fromkeys(parts, "cpu"), "transformer.h.1": place}


def _loaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder / "model")
    return AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=_map("disk"), offload_folder=folder / "offload"
    )


OFFLOADED: dict[str, Callable[[Any, Path], Any]] = {
    "cpu_offload": lambda model, folder: cpu_offload(model, execution_device="cpu"),
    "disk_offload": lambda model, folder: disk_offload(model, folder, execution_device="cpu"),
    "dispatch_model": lambda model, folder: dispatch_model(model, _map("disk"), offload_dir=folder, main_device="cpu"),
    "device_map": _loaded,
}


@pytest.mark.parametrize("way", OFFLOADED)
def test_an_offloaded_model_is_measured_where_it_lies(way: str, gpt2: Any, tmp_path: Path) -> None:
    """If this failed, a model that does not fit in memory could not be analyzed, or a tie would be two groups."""
    expected = hf_mhe.analyze(gpt2)
    model = OFFLOADED[way](copy.deepcopy(gpt2), tmp_path)
    meta = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert meta
    report = hf_mhe.analyze(model)
    assert same(report, expected)
    assert [(g.role, g.parameters) for g in report.groups] == [(g.role, g.parameters) for g in expected.groups]
    assert report.unseen == 0.0
    assert [name for name, parameter in model.named_parameters() if parameter.is_meta] == meta
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens).logits, gpt2(tokens).logits)


def test_any_module_is_read_from_its_hook(tmp_path: Path) -> None:
    """If this failed, only models of transformers would be found where they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Sequential(nn.Conv2d(3, 4, 3), nn.LSTM(4, 5)))
    expected = hf_mhe.analyze(model)
    assert same(hf_mhe.analyze(disk_offload(model, tmp_path, execution_device="cpu")), expected)


def test_two_equal_matrices_that_are_not_tied_stay_two(gpt2: Any, tmp_path: Path) -> None:
    """If this failed, an untied head would disappear from a report as soon as the model is offloaded."""
    model = copy.deepcopy(gpt2)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)
    expected = hf_mhe.analyze(model)
    assert "lm_head" in {group.name for group in expected.groups}
    for way in ("cpu_offload", "disk_offload"):
        offloaded = OFFLOADED[way](copy.deepcopy(model), tmp_path / way)
        assert same(hf_mhe.analyze(offloaded), expected), way


def test_meta_without_a_hook_is_still_refused() -> None:
    """If this failed, a model without weights would be measured by whatever lies there."""
    with torch.device("meta"), pytest.raises(MHEError, match="on the meta device and has no values"):
        hf_mhe.analyze(nn.Linear(8, 6))

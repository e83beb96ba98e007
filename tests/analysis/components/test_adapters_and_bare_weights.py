"""Folders that hold no model, or one of which nothing but names and shapes is known."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import hf_mhe
from hf_mhe.errors import MHEError
from tests.neurons.families.table import FAMILIES

peft = pytest.importorskip("peft")


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Any, Path]:
    """A small Llama with LoRA, and the folder that peft saves of it."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(FAMILIES["llama"].build(), config)
    model.peft_config["default"].base_model_name_or_path = "org/small-llama"
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_an_adapter_alone_is_refused_with_what_to_do(adapter: tuple[Any, Path]) -> None:
    """If this fails, low-rank factors are reported as if they were the layers of a model."""
    for given in (adapter[1], adapter[1] / "adapter_model.safetensors"):
        with pytest.raises(MHEError) as error:
            hf_mhe.analyze(given)
        assert "holds a LORA adapter of org/small-llama and not the weights of a model" in str(error.value)
        assert "merge_and_unload" in str(error.value)
        assert "\n" not in str(error.value)


def test_what_the_error_says_works(adapter: tuple[Any, Path], tmp_path: Path) -> None:
    """If this fails, the remedy that the error gives leads to another error."""
    in_memory = hf_mhe.analyze(adapter[0])
    adapter[0].merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = hf_mhe.analyze(tmp_path / "merged")
    assert {group.name for group in merged.groups} == {group.name for group in in_memory.groups}


def test_a_model_beside_an_adapter_is_the_model(adapter: tuple[Any, Path], tmp_path: Path) -> None:
    """If this fails, a folder that holds both is refused, or the adapter is read in the model's place."""
    folder = shutil.copytree(adapter[1], tmp_path / "both")
    FAMILIES["llama"].build().save_pretrained(folder)
    assert "model.layers.0.self_attn.q_proj" in {group.name for group in hf_mhe.analyze(folder).groups}


def test_without_a_config_all_is_by_shape(tmp_path: Path) -> None:
    """If this fails, weights without a config are refused, or given kinds and roles that nobody knows."""
    model = FAMILIES["gpt2"].build()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    found = hf_mhe.analyze(tmp_path)
    assert {(group.kind, group.role) for group in found.groups} == {("unknown", "hidden")}
    assert found.notes == ("no config.json: the modules are not known",)
    stored = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim >= 2}
    # the tied head is stored once
    assert {group.parameters[0] for group in found.groups} == set(stored) - {"lm_head.weight"}
    # as stored: transformers' Conv1D has its neurons on the other axis, which only the module knows
    fused = found["transformer.h.0.attn.c_attn"]
    assert (fused.n, fused.d) == tuple(stored["transformer.h.0.attn.c_attn.weight"].shape)

"""Adapters: measured in memory by the weight the model computes with, refused as what they are on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

peft = pytest.importorskip("peft")

import hf_mhe  # noqa: E402
from hf_mhe.errors import MHEError  # noqa: E402

BASE = "some-org/tiny-llama"


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=2, **size))
    base.name_or_path = base.config.name_or_path = BASE
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(base, config)


def test_report_in_memory_is_that_of_the_published_model(model: Any, tmp_path: Path) -> None:
    """A user who looks at a training would see other energies, or other names, than after merging and saving."""
    report = hf_mhe.analyze(model)
    model.merge_and_unload().save_pretrained(tmp_path)
    published = hf_mhe.analyze(tmp_path)
    assert [group.name for group in report.groups] == [group.name for group in published.groups]
    for ours, merged in zip(report.groups, published.groups, strict=True):
        assert ours.energy == pytest.approx(merged.energy, rel=1e-5)
        assert (ours.kind, ours.role, ours.n, ours.d) == (merged.kind, merged.role, merged.n, merged.d)


@pytest.mark.parametrize("given", ["folder", "file"])
def test_adapter_alone_is_refused_as_what_it_is(model: Any, tmp_path: Path, given: str) -> None:
    """Its A and B would be measured as if they were layers of a model, or it would be called damaged."""
    model.save_pretrained(tmp_path)
    source = tmp_path if given == "folder" else tmp_path / "adapter_model.safetensors"
    with pytest.raises(MHEError) as refused:
        hf_mhe.analyze(source)
    told = str(refused.value)
    for part in (str(tmp_path), f"LORA adapter of {BASE}", "merge_and_unload", "PeftModel in memory"):
        assert part in told


def test_adapter_beside_its_base(model: Any, tmp_path: Path) -> None:
    """A folder that holds the base's weights too would be refused for the adapter in it."""
    model.save_pretrained(tmp_path)
    model.unload().save_pretrained(tmp_path)
    assert len(hf_mhe.analyze(tmp_path).groups) == 9


def test_remedy_of_the_message_works(minilm_path: Path, tmp_path: Path) -> None:
    """The error would send the user to a call that does not do it."""
    base = AutoModel.from_pretrained(minilm_path)
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    query = "encoder.layer.0.attention.self.query"
    expected = hf_mhe.analyze(adapted, include=query).groups[0].energy
    fresh = AutoModel.from_pretrained(minilm_path)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert hf_mhe.analyze(tmp_path / "merged", include=query).groups[0].energy == pytest.approx(expected, rel=1e-5)


def test_config_without_a_base_is_still_named(tmp_path: Path) -> None:
    """A config that does not name its base would end in a KeyError."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT"}))
    with pytest.raises(MHEError, match="OFT adapter of its base model"):
        hf_mhe.analyze(tmp_path)


def test_own_matrices_of_a_checkpoint(tmp_path: Path) -> None:
    """The choice would be dropped in silence where there is no adapter to choose."""
    with pytest.raises(MHEError, match="adapters='own' was given for a checkpoint"):
        hf_mhe.analyze(tmp_path, adapters="own")

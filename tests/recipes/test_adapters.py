"""The recipes with adapters: what is trained is the adapter alone, on weights that may be quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.recipes.scripts import in_this_process, prose, texts

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]


@pytest.mark.parametrize("stored", ["whole", "4bit", "8bit"])
def test_a_language_model_is_trained_with_an_adapter_on_weights_as_they_are_stored(
    stored: str, tmp_path: Path, capsys: Any
) -> None:
    """LoRA or QLoRA would train nothing, train the model below it, or save what cannot be loaded."""
    from peft import PeftModel

    if stored != "whole":
        pytest.importorskip("bitsandbytes")
    given = prose(tmp_path)
    size = AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.vocab_size
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=size, **sizes)).save_pretrained(
        tmp_path / "model"
    )  # a block of 64 is one scale
    quantized = [] if stored == "whole" else [f"--load_in_{stored}"]
    arguments = given.given(tmp_path / "out", use_peft=True, lora_r=4, lora_target_modules="all-linear")
    assert in_this_process("causal_lm", *arguments, *quantized, "--per_device_train_batch_size", 8) == 0
    assert "mean spread" in capsys.readouterr().out
    assert not (tmp_path / "out" / "model.safetensors").exists()
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum("lora_B" in name for name in adapter) == 2 * 7
    assert all(torch.count_nonzero(weight) for weight in adapter.values()), "an adapter was not trained"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trained = PeftModel.from_pretrained(base, tmp_path / "out")
    tokens = torch.arange(10)[None]
    with trained.disable_adapter():
        before = trained(tokens).logits
    assert (trained(tokens).logits - before).abs().max() > 1e-4


def test_a_classifier_is_trained_with_an_adapter_and_its_head(tmp_path: Path, capsys: Any) -> None:
    """LoRA would leave the new head at random, or save a model without it."""
    given = texts(tmp_path)
    assert in_this_process("text_classification", *given.given(tmp_path / "out", lora_r=4)) == 0
    assert "mean spread" in capsys.readouterr().out
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("classifier" in name for name in adapter)
    assert all(torch.count_nonzero(weight) for name, weight in adapter.items() if "lora_B" in name)

"""Quantized weights where weights are trained: left out, with the reason, and refused where nothing else is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hf_mhe
from hf_mhe import MHEConfig, MHEError, MHERegularizer, MHETrainer
from tests.neurons.quantized.cases import build

bnb = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.integrations


def _layer(n: int, d: int) -> nn.Module:
    layer = bnb.nn.LinearNF4(d, n, bias=False, compute_dtype=torch.float32)
    layer.load_state_dict({"weight": torch.randn(n, d, generator=torch.Generator().manual_seed(n))})
    return layer.to("cpu")


def _model(*more: nn.Module) -> nn.Module:
    return nn.Sequential(_layer(64, 64), nn.ReLU(), _layer(32, 64), *more)


def test_quantized_layers_are_left_out_with_the_reason() -> None:
    """If this failed, a penalty would be computed on weights that no gradient reaches."""
    model = _model(nn.Linear(32, 8))
    assert [group.name for group in MHERegularizer(model).groups] == ["3"]
    assert [group.name for group in hf_mhe.neuron_groups(model, trainable_only=True)] == ["3"]
    skipped = hf_mhe.coverage(model, trainable_only=True).skipped
    assert skipped == dict.fromkeys(("0.weight", "2.weight"), "quantized by bitsandbytes (4-bit): not trained")


def test_nothing_but_quantized_layers_is_refused() -> None:
    """If this failed, a training would run without any penalty, or the error would advise requires_grad_(True)."""
    words = r"quantized by bitsandbytes \(4-bit\), and quantized weights are not trained.*peft.get_peft_model"
    with pytest.raises(MHEError, match=rf"nothing to regularize in Sequential: neuron group '0' is {words}"):
        MHERegularizer(_model())
    with pytest.raises(MHEError, match=words):
        hf_mhe.neuron_groups(_model(), trainable_only=True)
    with pytest.warns(UserWarning, match="no penalty until a layer is unfrozen"):  # the other one may be
        MHERegularizer(_model(nn.Linear(32, 8).requires_grad_(False)))
    with pytest.raises(MHEError, match=words):
        MHERegularizer(_model(nn.Linear(32, 8)), MHEConfig(output_weight=0.0))


@pytest.mark.parametrize("include", ["2", ["2", "3"], ["3", "[02]"], "re:^[02]$"])
def test_a_quantized_layer_asked_to_train_is_refused(include: Any) -> None:
    """If this failed, a layer that was asked for by name would be left out in silence."""
    model = _model(nn.Linear(32, 8))
    match = r"include pattern '(2|\[02\]|re:\^\[02\]\$)' asks to train '[02]', which is quantized by bitsandbytes"
    with pytest.raises(MHEError, match=match):
        MHERegularizer(model, MHEConfig(include=include))
    with pytest.raises(MHEError, match=match):
        hf_mhe.neuron_groups(model, include=include, trainable_only=True)


def test_a_pattern_that_asks_for_more_is_none_of_that() -> None:
    """If this failed, `include="*"` could not be said of a model with some quantized layers."""
    model = _model(nn.Linear(32, 8))
    assert [group.name for group in MHERegularizer(model, MHEConfig(include="*")).groups] == ["3"]
    assert [group.name for group in MHERegularizer(model, MHEConfig(include=["3", "*"], exclude="2")).groups] == ["3"]


def test_the_trainer_says_so_too(tmp_path: Path) -> None:
    """If this failed, the user would read of adapters only, not of what the penalty has to do with it."""
    from transformers import BitsAndBytesConfig, TrainingArguments

    plain = build("llama")
    plain.save_pretrained(tmp_path / "plain")
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = type(plain).from_pretrained(tmp_path / "plain", quantization_config=config)
    args = TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    match = r"quantized by bitsandbytes \(8-bit\), and quantized weights are not trained"
    for said in (MHEConfig(include="*proj"), MHEConfig(output_weight=0.0)):
        with pytest.raises(MHEError, match=match):
            MHETrainer(model=model, args=args, mhe_config=said)
        with pytest.raises(MHEError, match=match):
            MHETrainer(model, args, mhe_config=said)


def test_a_trainer_of_an_adapter_on_quantized_layers(tmp_path: Path) -> None:
    """If this failed, QLoRA with Trainer would be refused together with what cannot be trained."""
    peft = pytest.importorskip("peft")
    from datasets import Dataset
    from transformers import BitsAndBytesConfig, TrainingArguments

    plain = build("llama")
    plain.save_pretrained(tmp_path / "plain")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = type(plain).from_pretrained(tmp_path / "plain", quantization_config=config)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    rows = [{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]}] * 4
    settings = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True}
    trainer = MHETrainer(
        model=adapted,
        args=TrainingArguments(str(tmp_path / "out"), **settings),
        train_dataset=Dataset.from_list(rows),
        mhe_config=MHEConfig(include="*q_proj", hidden_weight=10.0),
    )
    before = trainer.mhe_regularizer.energies()
    assert len(before) == 2
    trainer.train()
    assert all("mhe_loss" in record for record in trainer.state.log_history if "loss" in record)
    after = trainer.mhe_regularizer.energies()
    assert all(after[name] != before[name] for name in before)

"""Names with a wrapper's name before or in them: looked through, in checkpoints and in memory, and said so."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import hf_mhe
from hf_mhe.neurons import coverage
from tests.analysis.damaged import linears, program, same, written

OF_TORCH = [
    "_orig_mod.",
    "module.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "_fsdp_wrapped_module.",
    "module._fsdp_wrapped_module._orig_mod.",
]


@pytest.mark.parametrize("config", [True, False], ids=["config", "bare"])
@pytest.mark.parametrize("prefix", OF_TORCH)
def test_a_prefix_of_torch_is_looked_through_and_named(
    prefix: str, config: bool, bert: Any, bert_folder: Path, tmp_path: Path
) -> None:
    """If this failed, a model saved through torch.compile would be most of it "newly initialised"."""
    given = bert_folder if config else None
    plain = hf_mhe.analyze(written(tmp_path / "plain", bert.state_dict(), given))
    wrapped = written(tmp_path / "wrapped", {prefix + k: v for k, v in bert.state_dict().items()}, given)
    report = hf_mhe.analyze(wrapped)
    assert same(report, plain)
    assert [(g.kind, g.role) for g in report.groups] == [(g.kind, g.role) for g in plain.groups]
    assert report.unseen == 0.0
    assert all(f"`{part}.`" in report.notes[0] for part in prefix.split(".") if part)
    stored = set(load_file(wrapped / "model.safetensors"))
    assert {name for group in report.groups for name in group.parameters} <= stored


@pytest.mark.parametrize("prefix", ["model.", "net.", "student.net.", "0.auto_model.", "base_model.model."])
def test_a_prefix_of_a_trainer_is_found_by_the_config(
    prefix: str, bert: Any, bert_folder: Path, tmp_path: Path
) -> None:
    """If this failed, a Lightning module's checkpoint would be measured by nothing."""
    state = {prefix + k: v for k, v in bert.state_dict().items()}
    report = hf_mhe.analyze(written(tmp_path / "model", {**state, "criterion.weight": torch.ones(5)}, bert_folder))
    assert same(report, hf_mhe.analyze(bert_folder))
    assert f"`{prefix}`" in report.notes[0]


def test_of_two_whole_models_none_is_guessed(bert: Any, bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, a teacher would be measured as the student, by the order of their names."""
    state = {f"{who}.{k}": v for who in ("student", "teacher") for k, v in bert.state_dict().items()}
    with pytest.raises(hf_mhe.MHEError, match="no group of neurons"):
        hf_mhe.analyze(written(tmp_path / "model", state, bert_folder))


def test_a_model_whose_own_names_begin_so_keeps_them(tmp_path: Path) -> None:
    """If this failed, `model.layers` of a Llama would lose its `model.`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=2, tie_word_embeddings=False, **size))
    model.save_pretrained(tmp_path / "plain")
    report = hf_mhe.analyze(tmp_path / "plain")
    assert report.notes == ()
    assert "model.layers.0.mlp.up_proj" in {group.name for group in report.groups}
    lightning = written(
        tmp_path / "lightning", {f"model.{k}": v for k, v in model.state_dict().items()}, tmp_path / "plain"
    )
    assert same(hf_mhe.analyze(lightning), report)


def test_a_wrapper_inside_the_model_is_looked_through(bert: Any, bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, layers that were compiled or checkpointed one by one would not be found."""
    state = {k.replace("layer.1.", "layer.1._checkpoint_wrapped_module."): v for k, v in bert.state_dict().items()}
    report = hf_mhe.analyze(written(tmp_path / "model", state, bert_folder))
    assert same(report, hf_mhe.analyze(bert_folder))
    assert "activation checkpointing" in report.notes[0]


def test_prefixes_in_shards(sharded_folder: Path, tmp_path: Path) -> None:
    """If this failed, only checkpoints of one file would be looked through."""
    folder = tmp_path / "model"
    shutil.copytree(sharded_folder, folder)
    for path in folder.glob("*.safetensors"):
        save_file({f"module._orig_mod.{k}": v for k, v in load_file(path).items()}, path)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {f"module._orig_mod.{k}": v for k, v in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    report = hf_mhe.analyze(folder)
    assert same(report, hf_mhe.analyze(sharded_folder))
    assert report.notes


def test_an_averaged_and_pruned_model(bert: Any, bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, weights stored in parts would be put together by other names than theirs."""
    model = copy.deepcopy(bert)
    for layer in linears(model):
        prune.l1_unstructured(layer, "weight", 0.4)
    averaged = AveragedModel(bert)
    assert "n_averaged" in averaged.state_dict()
    assert same(
        hf_mhe.analyze(written(tmp_path / "averaged", averaged.state_dict(), bert_folder)), hf_mhe.analyze(bert)
    )
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    report = hf_mhe.analyze(written(tmp_path / "both", state, bert_folder))
    assert same(report, hf_mhe.analyze(model))
    assert "module.classifier.weight_mask" in report["classifier"].parameters


@pytest.mark.parametrize(
    "wrap", [AveragedModel, nn.DataParallel, torch.compile, lambda m: AveragedModel(torch.compile(m))]
)
def test_wrappers_in_memory_are_looked_through(wrap: Any, bert: Any) -> None:
    """If this failed, names in memory would not be those of the checkpoint."""
    wrapped = wrap(copy.deepcopy(bert))
    assert same(hf_mhe.analyze(wrapped), hf_mhe.analyze(bert))
    found = coverage(wrapped)
    assert [group.parameters for group in found.groups] == [group.parameters for group in coverage(bert).groups]


def test_the_program_names_the_prefix(
    bert: Any, bert_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, a user would not learn why names in the table are not those of the file."""
    state = {f"_orig_mod.{k}": v for k, v in bert.state_dict().items()}
    folder = written(tmp_path / "model", state, bert_folder)
    assert program(monkeypatch, "analyze", folder, "--fail-above", "30") == 0
    assert "note: the names of the tensors are read without `_orig_mod.` (torch.compile)" in capsys.readouterr().err

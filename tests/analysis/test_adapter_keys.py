"""Adapters are known by the names of their tensors, whatever the file is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hf_mhe
from hf_mhe.errors import MHEError
from tests.analysis.conftest import small_bert
from tests.analysis.damaged import program, written

peft = pytest.importorskip("peft")


def _factors(model: nn.Module, name: str, down: str, up: str, alpha: str | None = None) -> dict[str, Tensor]:
    """Rank-4 factors of every linear layer under names that `name` makes of the layer's."""
    state = {}
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            own = name.format(dotted=path, flat=path.replace(".", "_"))
            state[own + down] = torch.randn(4, layer.in_features)
            state[own + up] = torch.randn(layer.out_features, 4)
            if alpha is not None:
                state[own + alpha] = torch.tensor(4.0)
    return state


NAMES = {
    "kohya": ("lora_te_{flat}", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    "kohya unet": ("lora_unet_{flat}", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    "diffusers": ("unet.{dotted}", ".lora.down.weight", ".lora.up.weight"),
    "old diffusers": ("{dotted}.processor.to_q", "_lora.down.weight", "_lora.up.weight"),
    "peft": ("base_model.model.{dotted}", ".lora_A.weight", ".lora_B.weight"),
    "diffusers with peft": ("transformer.{dotted}", ".lora_A.weight", ".lora_B.weight"),
    "adapters by name": ("{dotted}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "lycoris loha": ("lycoris_{flat}", ".hada_w1_a", ".hada_w1_b", ".alpha"),
    "lycoris lokr": ("lycoris_{flat}", ".lokr_w1", ".lokr_w2", ".alpha"),
}


@pytest.mark.parametrize("file", ["model.safetensors", "style.safetensors"])
@pytest.mark.parametrize("config", [True, False], ids=["config", "bare"])
@pytest.mark.parametrize("kind", NAMES)
def test_an_adapter_is_no_model_whatever_its_file_is_called(
    kind: str, config: bool, file: str, bert: Any, bert_folder: Path, tmp_path: Path
) -> None:
    """If this failed, the factors of an adapter would be measured as layers of a model."""
    folder = written(tmp_path / "adapter", _factors(bert, *NAMES[kind]), bert_folder if config else None)
    (folder / "model.safetensors").rename(folder / file)
    for source in (folder, folder / file):
        with pytest.raises(MHEError, match="adapter of its base model and not the weights of a model") as caught:
            hf_mhe.analyze(source)
        assert str(folder) in str(caught.value)
        assert "merge it" in str(caught.value)


@pytest.mark.parametrize("config", [True, False], ids=["config", "bare"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_model_with_an_unmerged_adapter_is_refused(
    kind: str, config: bool, bert: Any, bert_folder: Path, tmp_path: Path
) -> None:
    """If this failed, the base weights would be measured as if no adapter changed them."""
    state = {**bert.state_dict(), **_factors(bert, *NAMES[kind])}
    with pytest.raises(MHEError, match="not merged into its weights"):
        hf_mhe.analyze(written(tmp_path / "model", state, bert_folder if config else None))


def _configs() -> dict[str, Any]:
    target = {"target_modules": ["query", "dense"]}
    return {
        "lora": peft.LoraConfig(**target),
        "dora": peft.LoraConfig(use_dora=True, **target),
        "of embeddings": peft.LoraConfig(target_modules=["word_embeddings"]),
        "with a head": peft.LoraConfig(modules_to_save=["classifier"], **target),
        "adalora": peft.AdaLoraConfig(total_step=10, **target),
        "loha": peft.LoHaConfig(**target),
        "lokr": peft.LoKrConfig(**target),
        "ia3": peft.IA3Config(feedforward_modules=[], **target),
        "oft": peft.OFTConfig(oft_block_size=4, **target),
        "boft": peft.BOFTConfig(boft_block_size=4, **target),
        "vera": peft.VeraConfig(target_modules=["query"], save_projection=True),
        "hra": peft.HRAConfig(**target),
        "prompts": peft.PromptTuningConfig(num_virtual_tokens=6, task_type="SEQ_CLS"),
    }


@pytest.mark.parametrize("kind", _configs())
def test_every_method_of_peft_is_known_by_its_keys(kind: str, tmp_path: Path) -> None:
    """If this failed, the file of one method, renamed, would pass as a model."""
    peft.get_peft_model(small_bert(0), _configs()[kind]).save_pretrained(tmp_path / "peft")
    saved = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    save_file(saved, tmp_path / "other.safetensors")
    with pytest.raises(MHEError, match=r"adapter of its base model and not the weights of a model"):
        hf_mhe.analyze(tmp_path / "other.safetensors")


def test_the_state_of_a_peft_model_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    """If this failed, a PeftModel's state dict would be measured by its base weights alone."""
    model = peft.get_peft_model(small_bert(0), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(MHEError, match=r"not merged into its weights.*merge_and_unload"):
        hf_mhe.analyze(written(tmp_path / "model", model.state_dict(), bert_folder))


def test_a_model_that_has_such_names_itself_is_no_adapter(tmp_path: Path) -> None:
    """If this failed, models with low-rank layers of their own would be refused."""
    state = {
        "layers.0.w_lora.lora.0.weight": torch.randn(4, 12),
        "layers.0.q_a_proj.weight": torch.randn(6, 12),
        "color_up.weight": torch.randn(6, 12),
        "lora.weight": torch.randn(6, 12),
        "explora_up.weight": torch.randn(6, 12),
    }
    assert len(hf_mhe.analyze(written(tmp_path / "model", state, None)).groups) == 5


def test_the_program_says_it_in_one_line(
    bert: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, `hf-mhe analyze` of a LoRA would print a table of its factors."""
    folder = written(tmp_path / "adapter", _factors(bert, *NAMES["kohya"]), None)
    assert program(monkeypatch, "analyze", folder / "model.safetensors") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "LoRA adapter" in line
    assert "fuse_lora" in line

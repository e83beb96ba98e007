"""Small models, their checkpoints taken apart and written again, and the comparison that every format has to pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hf_mhe
from hf_mhe.analysis import EnergyReport

_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {**_SMALL, **_TOKENS, "intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": False}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _LLAMA),
    "bert": ("BertForSequenceClassification", {**_SMALL, "intermediate_size": 96, "num_labels": 5}),
    "gpt2": ("GPT2LMHeadModel", {**_TOKENS, "n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 60}),
    "vit": (
        "ViTForImageClassification",
        {**_SMALL, "intermediate_size": 96, "image_size": 8, "patch_size": 4, "num_labels": 5},
    ),
    "phi3": ("Phi3ForCausalLM", _LLAMA),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {**_LLAMA, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "mlp_only_layers": []},
    ),
    "gpt_oss": ("GptOssForCausalLM", {**_LLAMA, "num_local_experts": 3, "head_dim": 16, "intermediate_size": 64}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **_LLAMA,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 40,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 24,
            "kv_lora_rank": 20,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 10,
        },
    ),
}


def build(name: str, device: str = "cpu", **changes: Any) -> Any:
    """A small model, its weights from a seed; rows differ in length, as trained ones do, and none is zero."""
    import transformers

    class_name, arguments = MODELS[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    with torch.device(device):
        model = model_class(model_class.config_class(**{**arguments, **changes}))
    if device != "meta":
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.add_(0.02 * torch.randn_like(parameter))
                    parameter.mul_(torch.rand(parameter.shape[:-1])[..., None] + 0.5)
    return model.eval()


def plain_groups(name: str, **changes: Any) -> list[tuple[object, ...]]:
    """Name, kind, role and size of every group of the model that is not quantized."""
    return described(hf_mhe.neuron_groups(build(name, "meta", **changes)))


def described(groups: Any) -> list[tuple[object, ...]]:
    return sorted((group.name, group.kind, group.role, group.n, group.d) for group in groups)


def assert_alike(report: EnergyReport, oracle: EnergyReport, plain: list[tuple[object, ...]]) -> None:
    """The report names the plain model's groups, and each has the oracle's energy to 1e-6; nothing is left out."""
    assert report.notes == ()
    assert described(report.groups) == plain
    for group in oracle.groups:
        assert report[group.name].energy == pytest.approx(group.energy, rel=1e-6), group.name
        assert report[group.name].max_cosine == pytest.approx(group.max_cosine, abs=1e-6), group.name
    assert len(report.groups) == len(oracle.groups)


def rewritten(
    plain: Path, folder: Path, change: Callable[[str, Tensor], dict[str, Tensor]], quantization: dict[str, Any] | None
) -> Path:
    """A checkpoint with each tensor replaced by those that `change(name, tensor)` gives, and what its config says."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for file in sorted(plain.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            tensors.update(change(name, tensor))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    said = {} if quantization is None else {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps({**config, **said}))
    return folder


def without(folder: Path, target: Path, *names: str, **replaced: Tensor) -> Path:
    """A copy of a checkpoint that lacks some tensors, or has others in their place."""
    shutil.copytree(folder, target)
    from safetensors import safe_open

    (file,) = target.glob("*.safetensors")
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # it is no dict
    assert set(names) <= set(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in names}
    tensors.update(replaced)
    save_file(tensors, file, metadata)
    return target


def with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The model with some of its parameters replaced by values."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)
    return model

"""Adapters in real architectures: the groups of the model without them, with the weights of the merged model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft")

from hf_mhe.neurons import NeuronGroup, WeightCache, coverage, neuron_groups  # noqa: E402
from tests.neurons.adapters.cases import furthest, merged, stir, unaccounted  # noqa: E402

LoraConfig = peft.LoraConfig
Build = Callable[..., nn.Module]


def rows(model: nn.Module, **options: Any) -> dict[str, Tensor]:
    return {group.name: group.matrix() for group in neuron_groups(model, **options)}


def described(groups: list[NeuronGroup]) -> list[tuple[object, ...]]:
    return [(group.name, group.kind, group.role, group.n, group.d, group.module) for group in groups]


def adapted(model: nn.Module, config: Any) -> Any:
    wrapped = peft.get_peft_model(model.double(), config, autocast_adapter_dtype=False)
    return stir(wrapped.double()).eval()


EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "r": 3, "lora_alpha": 5}
ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
LABELS = {"task_type": "SEQ_CLS"}

# architecture, config, names of groups that must be among those that train
MODELS = [
    pytest.param("gpt2", LoraConfig(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True), "c_attn.k", id="gpt2"),
    pytest.param(
        "gpt2", LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True), "c_attn.v", id="gpt2 DoRA"
    ),
    pytest.param("gpt2", peft.IA3Config(task_type="CAUSAL_LM"), "mlp.c_proj", id="gpt2 IA3"),
    pytest.param("gpt_neox", LoraConfig(target_modules=["query_key_value"]), "query_key_value.q", id="gpt_neox"),
    pytest.param("falcon_grouped", LoraConfig(target_modules=["query_key_value"]), "query_key_value.k", id="falcon"),
    pytest.param("phi3", LoraConfig(target_modules=["gate_up_proj"], use_dora=True), "gate_up_proj.up", id="phi3"),
    pytest.param("mixtral", LoraConfig(**ATTENTION, **EXPERTS), "experts.3.gate", id="mixtral"),
    pytest.param("qwen3_moe", LoraConfig(**ATTENTION, **EXPERTS), "experts.0.down", id="qwen3_moe"),
    pytest.param("qwen3_moe", LoraConfig(target_modules=[], **EXPERTS), "experts.1.up", id="qwen3_moe experts alone"),
    pytest.param("gpt_oss", LoraConfig(**ATTENTION, **EXPERTS, use_rslora=True), "experts.2.up", id="gpt_oss"),
    pytest.param("llama", LoraConfig(target_modules=["embed_tokens", "lm_head"]), "lm_head", id="embeddings"),
    pytest.param("llama", LoraConfig(**ATTENTION, modules_to_save=["lm_head"]), "lm_head", id="modules_to_save"),
    pytest.param("llama", LoraConfig(**ATTENTION, trainable_token_indices=[3]), "embed_tokens", id="tokens"),
    pytest.param("gpt2", LoraConfig(target_modules=["c_fc"], trainable_token_indices=[3]), "wte", id="tied tokens"),
    pytest.param("llama_classifier", LoraConfig(**ATTENTION, **LABELS), "score", id="classifier"),
    pytest.param("bert", LoraConfig(target_modules=["query"], **LABELS), "classifier", id="bert"),
    pytest.param("vit", LoraConfig(target_modules=["projection"]), "projection", id="patches"),
    pytest.param("wav2vec2", LoraConfig(target_modules=["conv_layers.1.conv"]), "conv_layers.1.conv", id="wav2vec2"),
    pytest.param("llama", peft.OFTConfig(**ATTENTION, oft_block_size=8), "q_proj", id="OFT"),
    pytest.param("llama", peft.BOFTConfig(**ATTENTION, boft_block_size=4), "q_proj", id="BOFT"),
]


@pytest.mark.parametrize(("name", "config", "trained"), MODELS)
def test_groups_are_those_of_the_merged_model(name: str, config: Any, trained: str, build: Build) -> None:
    """Wrapping a model would rename its layers, lose a projection, or change a role."""
    bare = described(neuron_groups(build(name)))
    model = adapted(build(name), config)
    found = neuron_groups(model)
    assert described(found) == bare
    truth = merged(model)
    assert described(neuron_groups(truth)) == bare
    assert furthest(rows(model), rows(truth)) < 1e-12
    assert unaccounted(model) == []
    assert unaccounted(model, adapters="own") == []
    training = neuron_groups(model, trainable_only=True)
    assert any(group.name.endswith(trained) for group in training)
    assert 0 < len(training) < len(found)
    for group in training:
        touched = [p for p in group.tensors() if isinstance(p, nn.Parameter) and p.requires_grad]
        gradients = torch.autograd.grad(group.matrix().square().sum(), touched)
        assert all(bool(gradient.isfinite().all() and gradient.any()) for gradient in gradients)


def test_heads_of_an_adapted_projection(build: Build) -> None:
    """The heads of a fused projection would be cut from the base weight, without what the adapter adds."""
    model = adapted(build("gpt2"), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    found = rows(model, by_head=True)
    assert "transformer.h.1.attn.c_attn.k.head.3" in found
    assert furthest(found, rows(merged(model), by_head=True)) < 1e-12


def test_groups_cut_from_one_weight_make_it_once(build: Build) -> None:
    """A stack of adapted experts would be multiplied out anew for each of its experts."""
    model = adapted(build("qwen3_moe"), LoraConfig(target_modules=[], **EXPERTS))
    experts = neuron_groups(model, include="*.layers.0.mlp.experts.*")
    assert len(experts) == 12
    made: list[int] = []

    def counted(group: NeuronGroup) -> NeuronGroup:
        source = group.source
        assert source is not None
        return replace(
            group, source=replace(source, combine=lambda tensors: made.append(1) or source.combine(tensors))
        )

    for cache in (WeightCache(), WeightCache(keep_all=True)):
        made.clear()
        together = [counted(group).matrix(cache) for group in experts]
        assert len(made) == 2  # gate_up_proj and down_proj
    for rows, group in zip(together, experts, strict=True):
        torch.testing.assert_close(rows, group.matrix(), rtol=1e-12, atol=1e-12)
    stack = model.base_model.model.model.layers[0].mlp.experts
    parameters = [parameter for name, parameter in stack.named_parameters() if "lora_" in name]
    whole = torch.autograd.grad(sum(rows.square().sum() for rows in together), parameters)
    each = torch.autograd.grad(sum(group.matrix().square().sum() for group in experts), parameters)
    for found, expected in zip(whole, each, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{"target_modules": ["wte"]}, {"modules_to_save": ["wte"]}], ids=["LoRA", "copy"])
def test_layers_that_share_a_matrix_part_when_one_is_adapted(changes: dict[str, Any], build: Build) -> None:
    """GPT-2's head would be measured with the embedding's adapter, which it never computes with."""
    bare = build("gpt2").double()
    model = adapted(build("gpt2"), LoraConfig(**{"target_modules": ["c_fc"], "fan_in_fan_out": True, **changes}))
    groups = {group.name: group for group in neuron_groups(model)}
    assert (groups["transformer.wte"].role, groups["lm_head"].role) == ("embedding", "output")
    assert torch.equal(groups["lm_head"].matrix(), bare.lm_head.weight)
    assert not groups["lm_head"].requires_grad
    tokens = torch.arange(60)
    # Not to the last bit: the layer multiplies the looked-up rows of A with B, the group all of them, the other way.
    embedded = model.base_model.model.transformer.wte(tokens)
    torch.testing.assert_close(groups["transformer.wte"].matrix(), embedded, rtol=1e-12, atol=1e-12)
    hidden = torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(model.base_model.model.lm_head(hidden), hidden @ groups["lm_head"].matrix().T)


PROMPTS = [
    peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
    peft.MultitaskPromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM"),
    peft.LNTuningConfig(task_type="CAUSAL_LM"),
    peft.CPTConfig(cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1], task_type="CAUSAL_LM"),
    peft.CartridgeConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    peft.ShadowConfig(task_type="CAUSAL_LM"),
]


@pytest.mark.parametrize("config", PROMPTS, ids=lambda config: config.peft_type.value.lower())
def test_methods_that_change_no_weight(config: Any, build: Build) -> None:
    """A model with trained prompts would lose or rename its own layers, or hide the prompts."""
    bare = described(neuron_groups(build("llama")))
    model = peft.get_peft_model(build("llama"), config)
    found = described(neuron_groups(model))
    assert [group for group in found if group in bare] == bare
    added = [group[0] for group in found if group not in bare]
    assert all(name.startswith(("prompt_encoder.", "shadow_")) or "adaption_prompt" in name for name in added)
    assert unaccounted(model) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"use_bdlora": peft.tuners.lora.config.BdLoraConfig(["q_proj"], nblocks=2)}, "BdLoraLinear is not known"),
        ({"alora_invocation_tokens": [1]}, "ALoraLinear is not known"),
        ({"kasa_config": peft.tuners.lora.config.KasaConfig()}, "KasaLinear is not known"),
        ({"monteclora_config": peft.tuners.lora.config.MontecloraConfig()}, "MontecloraLinear is not known"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_variants_of_lora_that_are_not_known_are_refused(changes: dict[str, Any], told: str, build: Build) -> None:
    """Another product of A and B would be taken for plain LoRA."""
    config = LoraConfig(target_modules=["q_proj"], r=4, task_type="CAUSAL_LM", **changes)
    model = stir(peft.get_peft_model(build("llama"), config))
    name = "model.layers.0.self_attn.q_proj"
    assert name not in rows(model)
    assert told in coverage(model).skipped[f"base_model.model.{name}.base_layer.weight"]
    assert unaccounted(model) == []


def test_xlora_is_refused(build: Build, tmp_path: Any) -> None:
    """Adapters that are weighed anew for each token would be read as if each counted fully."""
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(build("llama"), config).save_pretrained(tmp_path)
    base = build("llama")
    base.config.use_cache = False  # X-LoRA asks for this
    adapters = {"0": str(tmp_path), "1": str(tmp_path)}
    model = peft.get_peft_model(base, peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=adapters))
    name = "base_model.lora_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    assert "anew for each token" in coverage(model).skipped[name]
    assert unaccounted(model) == []

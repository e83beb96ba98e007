"""Whose rows compete: by what the layer's own forward pass does with them, and by what a table is a table of."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from hf_mhe.neurons import NeuronGroup, coverage, neuron_groups
from hf_mhe.neurons.checkpoint.by_shape import groups_by_shape
from tests.neurons.families.table import FAMILIES

Conv = type[nn.Module]


def reads(layer: nn.Module, channels: int) -> list[frozenset[int]]:
    """The input channels that each output channel of a convolution changes with, by trying."""
    rank = sum(axis in type(layer).__name__ for axis in ("1d", "2d", "3d")) and int(type(layer).__name__[-2])
    with torch.no_grad():
        inputs = torch.randn(1, channels, *[5] * rank, dtype=torch.float64)
        before = layer(inputs)
        seen: list[set[int]] = [set() for _ in range(before.shape[1])]
        for channel in range(channels):
            moved = inputs.clone()
            moved[0, channel] += 1.0
            for output, changed in enumerate((layer(moved) != before)[0].flatten(1).any(dim=1).tolist()):
                if changed:
                    seen[output].add(channel)
    return [frozenset(channels) for channels in seen]


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "groups"),
    [
        (6, 8, 1),  # dense
        (1, 8, 1),  # a first layer on grey images: kernels (8, 1, 3, 3), as those of a depthwise one
        (8, 8, 8),  # depthwise
        (4, 8, 4),  # depthwise with a channel multiplier of 2
        (8, 4, 4),  # one output for each two inputs
        (8, 8, 2),
        (8, 8, 4),  # few channels a group
    ],
)
@pytest.mark.parametrize(
    "convolution",
    [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d],
    ids=lambda convolution: convolution.__name__,
)
def test_kernels_compete_where_they_see_the_same_input(
    convolution: Conv, in_channels: int, out_channels: int, groups: int
) -> None:
    """If this failed, kernels that smooth two channels in one way would be called redundant, or real copies hidden."""
    layer = convolution(in_channels, out_channels, 3, groups=groups, padding=1).double()
    found = neuron_groups(nn.Sequential(layer, nn.ReLU()))
    inputs, at = reads(layer, in_channels), 0
    for group in found:
        of_rows = inputs[at : at + group.n]
        assert group.competes == (len(set(of_rows)) == 1), group.name
        assert group.apart == (None if group.competes else "different inputs")
        at += group.n
    assert at == out_channels


def weight_normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(8, 8, 3, groups=8))


class NamedOtherwise(nn.Conv2d):
    """As models subclass a convolution for its padding."""


@pytest.mark.slow
@pytest.mark.parametrize("make", [weight_normed, lambda: NamedOtherwise(8, 8, 3, groups=8)])
def test_a_depthwise_layer_of_any_making_is_apart(make: Callable[[], nn.Module]) -> None:
    """If this failed, a parametrization or a subclass would bring depthwise kernels back to the head of every list."""
    (group,) = neuron_groups(nn.Sequential(make(), nn.ReLU()))
    assert (group.kind, group.apart, group.competes) == ("depthwise", "different inputs", False)


@pytest.mark.slow
def test_a_table_with_an_adapter_is_apart() -> None:
    """If this failed, fine-tuning would move groups into the headline that were not in it before."""
    peft = pytest.importorskip("peft")
    model = nn.Module()
    model.position_embeddings, model.words = nn.Embedding(9, 8), nn.Embedding(9, 8)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["position_embeddings", "words"]))
    assert [(group.name, group.apart) for group in neuron_groups(adapted)] == [
        ("position_embeddings", "positions"),
        ("words", None),
    ]
    own = {group.name: group.apart for group in neuron_groups(adapted, adapters="own")}
    assert own["position_embeddings"] == "positions"
    assert own["position_embeddings.lora_embedding_A.default"] is None  # its rows are terms of one sum


TABLES = {
    # transformers' names, each as its model has it
    "embeddings.position_embeddings": "positions",  # BERT
    "transformer.wpe": "positions",  # GPT-2
    "decoder.embed_positions": "positions",  # BART
    "positions_embed": "positions",  # GPT
    "visual.pos_embed": "positions",  # Qwen-VL
    "char_embeddings.char_position_embeddings": "positions",  # CANINE
    "embeddings.x_position_embeddings": "positions",  # LayoutLM
    "embeddings.row_embedder": "positions",  # Pix2Struct
    "image_position_embed.column_embeddings": "positions",  # Florence 2
    "SelfAttention.relative_attention_bias": "positions",  # T5
    "attention.rel_attn_embed": "positions",  # WavLM
    "self_attn.distance_embedding": "positions",  # Wav2Vec2-BERT
    "encoder.rel_embeddings": "positions",  # DeBERTa
    "embed_positions.pe_k": "positions",  # SpeechT5
    "relative_attention_bias_layer.bias_values": "positions",  # Phi-4
    "pre_tile_positional_embedding.embedding": "positions",  # Mllama
    "embed_timestep": "positions",  # Decision Transformer
    "embeddings.token_type_embeddings": "types",  # BERT
    "embeddings.token_type_embeddings_3": "types",  # TAPAS
    "segment_emb": "types",  # Kosmos
    "transformer_module.level_embed": "types",  # Mask2Former
    "embeddings.word_embeddings": None,
    "transformer.wte": None,
    "model.embed_tokens": None,
    "shared": None,
    "entity_embeddings.entity_embeddings": None,  # LUKE
    "query_position_embeddings": None,  # object queries of DETR and Grounding DINO
    "query_embed": None,
    "reference_points": None,
    "vocoder.speaker_embedding": None,
    "quantizer.codebook": None,
    "pronunciation_embed": None,  # RoCBert: a vocabulary of its own
    "mask_decoder.mask_tokens": None,  # SAM: one for each answer
    # of diffusers
    "latent_image_embedding.height_emb": "positions",  # VQ Diffusion, in ImagePositionalEmbeddings
    "latent_image_embedding.emb": None,  # its codes
    "time_proj": "positions",  # a row for each time step
    "data_type_token_embedding": "types",
    "class_embedding": None,
    # as tutorials and others have them
    "position_embedding_table": "positions",
    "token_embedding_table": None,
    "positionEmbedding": "positions",
    "pos_tag_embedding": None,  # parts of speech
    "composition": None,
    "positional_encoder.token_embedding": None,
    "prototypes": None,
}


def holding(path: str, leaf: nn.Module | nn.Parameter) -> nn.Module:
    """A model that has a layer or a parameter at a dotted path."""
    *parents, last = path.split(".")
    root = module = nn.Module()
    for name in parents:
        module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    setattr(module, last, leaf)
    return root


@pytest.mark.parametrize(("path", "apart"), TABLES.items())
def test_a_table_is_known_by_its_name(path: str, apart: str | None) -> None:
    """If this failed, neighbouring positions would count as redundant neurons, or copies of words be hidden."""
    (group,) = neuron_groups(holding(path, nn.Embedding(9, 4)))
    assert (group.name, group.kind, group.apart) == (path, "embedding", apart)
    # A dense layer of that name is one whose rows read one input, such as a projection of positions.
    (layer,) = neuron_groups(holding(path, nn.Linear(4, 9)))
    assert layer.competes


@pytest.mark.parametrize(
    ("name", "shape", "apart"),
    [
        ("pos_embed", (1, 9, 4), "positions"),
        ("rel_pos_h", (9, 4), "positions"),
        ("relative_position_bias_table", (9, 4), "positions"),
        ("memory_temporal_positional_encoding", (7, 1, 1, 4), "positions"),
        ("time_embeddings", (1, 8, 4), "positions"),
        ("level_embed", (3, 4), "types"),
        ("token_type_embed", (3, 4), "types"),
        ("query_tokens", (1, 9, 4), None),
        ("register_tokens", (9, 4), None),
        ("latents", (9, 4), None),
        ("query_pos_embed", (9, 4), None),
    ],
)
def test_a_bare_table_is_known_by_its_name(name: str, shape: tuple[int, ...], apart: str | None) -> None:
    """If this failed, the positions of vision models would lead their lists, or equal queries would be hidden."""
    (group,) = neuron_groups(holding(f"encoder.{name}", nn.Parameter(torch.randn(shape))))
    assert (group.role, group.apart) == ("embedding", apart)
    listed = neuron_groups(holding(f"encoder.{name}", nn.ParameterList([torch.randn(shape), torch.randn(shape)])))
    assert [group.apart for group in listed] == [apart, apart]


def test_a_class_that_says_positions_needs_no_name() -> None:
    """If this failed, a table would be judged by what a model calls it alone."""

    class LearnedPositionalEmbedding(nn.Embedding):
        pass

    assert neuron_groups(holding("table", LearnedPositionalEmbedding(9, 4)))[0].apart == "positions"


def test_a_shared_matrix_competes_as_soon_as_one_use_does() -> None:
    """If this failed, class vectors would be hidden because a table of positions has their numbers."""
    model = nn.Module()
    model.position_embeddings, model.relative_positions, model.head = (
        nn.Embedding(9, 4),
        nn.Embedding(9, 4),
        nn.Linear(4, 9),
    )
    model.relative_positions.weight = model.position_embeddings.weight
    shared, head = neuron_groups(model)
    assert (shared.apart, head.apart) == ("positions", None)
    model.head.weight = model.position_embeddings.weight
    (shared,) = neuron_groups(model)
    assert (shared.role, shared.apart) == ("embedding", None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(8, 4),
        lambda: nn.Bilinear(3, 5, 4),
        lambda: nn.LSTM(8, 4),
        lambda: nn.MultiheadAttention(8, 2),
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
    ],
)
def test_dense_layers_compete(make: Callable[[], nn.Module]) -> None:
    """If this failed, the layers that the numbers are about would be left out of the headline."""
    assert all(group.competes for group in neuron_groups(nn.Sequential(make(), nn.ReLU())))


def test_what_has_no_two_rows_is_no_group() -> None:
    """If this failed, a gate with one output or a diagonal of factors would be compared with itself."""
    model = nn.Module()
    model.gate = nn.Linear(8, 1)
    model.gamma = nn.Parameter(torch.ones(8, 1, 1))
    model.layer_scale = nn.Parameter(torch.ones(1, 8))
    found = coverage(model)
    assert found.groups == []
    assert {name: reason.split(":")[0].split(",")[0] for name, reason in found.skipped.items()} == {
        "gate.weight": "one neuron only",
        "gamma": "one vector only",
        "layer_scale": "one vector only",
    }


def small(name: str, **sizes: Any) -> nn.Module:
    """A small model of a type of transformers, on the meta device."""
    import transformers

    config = transformers.AutoConfig.for_model(name, **sizes)
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config)


def apart(model: nn.Module) -> dict[str, str]:
    return {group.name: group.apart for group in neuron_groups(model) if group.apart is not None}


def test_what_is_apart_in_real_models() -> None:
    """If this failed, the decision would hold of made-up layers and not of the models that people open."""
    bert = small("bert", hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=16)
    assert apart(bert) == {
        "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "types",
    }
    gpt2 = small("gpt2", n_embd=8, n_head=2, n_layer=1, vocab_size=16, n_positions=16)
    assert apart(gpt2) == {"wpe": "positions"}
    t5 = small("t5", d_model=8, d_kv=4, num_heads=2, num_layers=1, d_ff=8, vocab_size=16)
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias"
    assert apart(t5) == {f"{side}.{bias}": "positions" for side in ("encoder", "decoder")}
    mamba = small("mamba", hidden_size=8, num_hidden_layers=1, state_size=4, vocab_size=16)
    assert apart(mamba) == {"layers.0.mixer.conv1d": "different inputs"}
    assert "rates of single states" in coverage(mamba).skipped["layers.0.mixer.A_log"]
    efficientnet = small("efficientnet", width_coefficient=0.2, depth_coefficient=0.2)
    kernels = {group.name for group in neuron_groups(efficientnet) if group.kind == "depthwise"}
    assert len(kernels) > 5
    assert apart(efficientnet) == dict.fromkeys(kernels, "different inputs")


def test_a_gate_of_a_shared_expert_is_no_group() -> None:
    """If this failed, the gate with one output that mixtures of experts have would have been overlooked."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 8, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    model = small("qwen2_moe", num_experts=4, vocab_size=16, **sizes)
    assert coverage(model).skipped["layers.0.mlp.shared_expert_gate.weight"].startswith("one neuron only")
    assert apart(model) == {}


def test_it_stays_with_the_group() -> None:
    """If this failed, a pipeline's component or a group sent to another process would lose what it is."""
    (group,) = neuron_groups(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()))
    assert group.prefixed("unet").apart == "different inputs"
    sent: NeuronGroup = pickle.loads(pickle.dumps(group))
    assert (sent.name, sent.apart, sent.competes) == (group.name, "different inputs", False)


def test_what_is_not_known_competes() -> None:
    """If this failed, layers of a checkpoint without a config would be hidden for the shape or the name they have."""
    groups, _ = groups_by_shape({"conv.weight": (16, 1, 3, 3), "linear_pos.weight": (8, 8)})
    assert [group.competes for group in groups] == [True, True]


@pytest.mark.slow
def test_the_families_have_all_three() -> None:
    """If this failed, no checkpoint that is compared with its model would have a group that is kept apart."""
    found = {group.apart for name in FAMILIES for group in neuron_groups(FAMILIES[name].build("meta"))}
    assert found == {None, "different inputs", "positions", "types"}

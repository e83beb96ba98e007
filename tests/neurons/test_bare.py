"""Parameters that a module holds itself: tables and tokens by their names, a few by the class around them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_mhe.neurons import NeuronGroup, coverage, neuron_groups

UNTOLD = "no product or look-up in the code of Net shows its neurons"


class Holder(nn.Module):
    """One parameter of a given name and shape, its numbers all different."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        numbers = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
        self.register_parameter(name, nn.Parameter(numbers))


class MyPositionEmbedding(Holder):
    pass


def only_group(model: nn.Module) -> NeuronGroup:
    (group,) = neuron_groups(model)
    return group


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("pos_embed", (1, 9, 4), "position"),
        ("position_embeddings", (9, 4), "position"),
        ("positional_embedding", (9, 1, 4), "position"),
        ("memory_temporal_positional_encoding", (7, 1, 1, 4), "position"),
        ("emb_rel_k", (1, 9, 4), "position"),
        ("rel_pos_h", (9, 4), "position"),
        ("relative_position_bias_table", (9, 4), "position"),
        ("pos_embed", (1, 5, 5, 4), "position"),
        ("cls_tokens", (1, 2, 4), "token"),
        ("query_tokens", (1, 9, 4), "token"),
        ("register_tokens", (9, 4), "token"),
        ("latents", (9, 4), "token"),
        ("query", (3, 2, 4), "token"),
        ("level_embed", (3, 4), "embedding"),
        ("time_embeddings", (1, 8, 4), "embedding"),
    ],
)
def test_table_is_known_by_its_name(name: str, shape: tuple[int, ...], kind: str) -> None:
    """If this failed, learned positions and tokens would be missing from a report, or be regularized as layers."""
    model = Holder(name, shape)
    group = only_group(nn.Sequential(model, nn.ReLU()))
    assert (group.name, group.kind, group.role, group.parameters) == (f"0.{name}", kind, "embedding", (f"0.{name}",))
    assert torch.equal(group.matrix(), getattr(model, name).reshape(-1, 4))


def test_a_table_of_a_class_that_says_position() -> None:
    """If this failed, Mllama's and Reformer's position tables, called `embedding` and `weights`, would be lost."""
    group = only_group(MyPositionEmbedding("table", (5, 4)))
    assert (group.kind, group.role, group.n, group.d) == ("position", "embedding", 5, 4)


def test_a_grid_with_the_vectors_first() -> None:
    """If this failed, SAM 2's positions (1, d, h, w) would be compared by rows of pixels."""
    model = Holder("pos_embed", (1, 4, 3, 3))
    assert torch.equal(only_group(model).matrix(), model.pos_embed[0].flatten(1).T)


@pytest.mark.parametrize("name", ["pos_proj", "scale", "bias", "pos_bias_u", "r_w_bias", "token_weights", "A_log"])
def test_a_name_that_only_resembles_a_table_is_none(name: str) -> None:
    """If this failed, biases, factors and matrices of unknown layout would pass for tables of vectors."""
    found = coverage(Holder(name, (5, 4)))
    assert found.groups == []
    assert found.skipped.keys() == {name}


def test_lists_and_dicts_are_named_by_their_holder() -> None:
    """If this failed, parameters in a ParameterList would be nameless, and none of them a group."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embeds = nn.ParameterList([torch.randn(5, 4), torch.randn(1, 6, 4), torch.randn(1, 4)])
            self.prompt_tokens = nn.ParameterDict({"en": torch.randn(3, 4)})
            self.things = nn.ParameterList([torch.randn(3, 4)])

    model = Net()
    found = coverage(model)
    assert [(group.name, group.kind, group.n, group.d, group.parameters) for group in found.groups] == [
        ("pos_embeds.0", "position", 5, 4, ("pos_embeds.0",)),
        ("pos_embeds.1", "position", 6, 4, ("pos_embeds.1",)),
        ("prompt_tokens.en", "token", 3, 4, ("prompt_tokens.en",)),
    ]
    assert torch.equal(found.groups[2].matrix(), model.prompt_tokens["en"])
    assert found.skipped == {
        "pos_embeds.2": "one vector only, shape (1, 4): energy needs at least two",
        "things.0": f"bare parameter 'things.0' of Net (2-dimensional): {UNTOLD}",
    }


def test_what_a_layer_reads_itself_is_read_once() -> None:
    """If this failed, an extra table on a Linear would be lost, or the layer's weight counted twice."""

    class Tagged(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.tag_embed = nn.Parameter(torch.randn(6, 4))

    layer, table = neuron_groups(nn.Sequential(Tagged(), nn.ReLU()))
    assert (layer.name, layer.kind, layer.n) == ("0", "linear", 3)
    assert (table.name, table.kind, table.n) == ("0.tag_embed", "embedding", 6)


def test_groups_of_a_table_follow_its_gradient() -> None:
    """If this failed, an energy on learned queries could not train them."""
    model = Holder("query_tokens", (1, 3, 4))
    only_group(model).matrix()[1].sum().backward()
    assert torch.equal(model.query_tokens.grad[0], torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 4))


def test_gumbel_codebooks_are_apart() -> None:
    """If this failed, entries of two codebooks, of which one each is taken, would be compared with each other."""
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

    config = Wav2Vec2Config(num_codevector_groups=2, num_codevectors_per_group=5, codevector_dim=6, conv_dim=(4,) * 7)
    quantizer = Wav2Vec2GumbelVectorQuantizer(config)
    nn.init.normal_(quantizer.codevectors)
    books = [group for group in neuron_groups(quantizer) if group.kind == "codebook"]
    assert [(book.name, book.role, book.n, book.d) for book in books] == [
        ("codevectors.0", "embedding", 5, 3),
        ("codevectors.1", "embedding", 5, 3),
    ]
    quantizer.eval()
    taken, _ = quantizer(torch.randn(1, 7, 4))
    for half, book in zip(taken[0].split(3, dim=-1), books, strict=True):
        assert (torch.cdist(half, book.matrix()).min(dim=1).values < 1e-6).all()


def test_levit_has_a_vector_for_each_offset() -> None:
    """If this failed, heads would be compared in the space of offsets, unlike in every other table of biases."""
    from transformers.models.levit.modeling_levit import LevitAttention

    attention = LevitAttention(hidden_sizes=8, key_dim=4, num_attention_heads=2, attention_ratio=2, resolution=3)
    nn.init.normal_(attention.attention_biases)
    (table,) = (group for group in neuron_groups(attention) if group.kind == "position")
    assert torch.equal(table.matrix(), attention.attention_biases.T)


def test_moshi_has_a_matrix_for_each_codebook() -> None:
    """If this failed, the depth decoder of Moshi would have no neurons."""
    from transformers.models.moshi.modeling_moshi import MoshiFlexibleLinear

    layer = MoshiFlexibleLinear(input_size=4, output_size=5, num_layers=3)
    groups = neuron_groups(nn.ModuleDict({"fc": layer}))
    assert [group.name for group in groups] == ["fc.0", "fc.1", "fc.2"]
    inputs = torch.randn(2, 3, 4)
    outputs = layer(inputs)
    for codebook, group in enumerate(groups):
        assert torch.allclose(outputs[:, codebook], inputs[:, codebook] @ group.matrix().T, atol=1e-6)

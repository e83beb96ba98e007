"""Roles come from the model: which layer is the output, which matrix is an embedding, what is tied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import coverage, neuron_groups
from tests.neurons.families.table import FAMILIES

# Tables that the vision models above hold as bare parameters.
BARE_TABLES = {
    "pos_embed",
    "position_embedding",
    "position_embeddings",
    "positional_embedding",
    "rel_pos_h",
    "rel_pos_w",
    "relative_position_bias_table",
    "time_embeddings",
}


def test_output_layers(architecture: str, build: Callable[..., nn.Module]) -> None:
    """If this failed, class vectors would be spread in half space, which mirrors them, or weighted wrongly."""
    groups = neuron_groups(build(architecture))
    assert {group.name for group in groups if group.role == "output"} == FAMILIES[architecture].outputs


def test_tied_matrix_is_one_embedding_group(architecture: str, build: Callable[..., nn.Module]) -> None:
    """If this failed, a tied matrix would be counted twice, or regularized as an output layer."""
    model = build(architecture)
    groups = neuron_groups(model)
    tied = {group.name: group.aliases for group in groups if group.aliases}
    assert tied == dict(filter(None, [FAMILIES[architecture].tied]))
    for group in groups:
        if group.aliases:
            assert group.role == "embedding"
            assert group.parameters == tuple(f"{name}.weight" for name in (group.name, *group.aliases))
    rows = [(group.parameters, group.layout) for group in groups]
    assert len(rows) == len(set(rows))


def test_embeddings_are_the_lookup_tables(architecture: str, build: Callable[..., nn.Module]) -> None:
    """If this failed, embedding tables would be regularized as hidden layers, or layers left out as embeddings."""
    model = build(architecture)
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    tables |= {p for name, p in model.named_parameters() if name.rpartition(".")[2] in BARE_TABLES}
    found = {group.tensors()[0] for group in neuron_groups(model) if group.role == "embedding"}
    assert found == {table for table in tables if table.shape[:-1].numel() > 1}


def test_output_of_a_head_as_wide_as_the_model(build: Callable[..., nn.Module]) -> None:
    """If this failed, the hidden layer of a classification head would be taken for its output when sizes coincide."""
    groups = neuron_groups(build("roberta", num_labels=32))
    assert [group.name for group in groups if group.role == "output"] == ["classifier.out_proj"]


def test_output_of_a_plain_sequential() -> None:
    """If this failed, the class vectors of the simplest classifier would be mirrored."""
    body = [nn.Linear(8, 6), nn.ReLU()]
    for tail in ([nn.Linear(6, 4)], [nn.Linear(6, 4), nn.LogSoftmax(-1)], [nn.Sequential(nn.Linear(6, 4))]):
        roles = [group.role for group in neuron_groups(nn.Sequential(*body, *tail))]
        assert roles == ["hidden", "output"]
    assert [group.role for group in neuron_groups(nn.Sequential(*body))] == ["hidden"]


def test_output_can_be_named() -> None:
    """If this failed, models that do not tell their head could not be trained with class vectors in full space."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 4)
            self.body = nn.Linear(8, 6)

    assert {group.name: group.role for group in neuron_groups(Net())} == {"head": "hidden", "body": "hidden"}
    named = {group.name: group.role for group in neuron_groups(Net(), output="head")}
    assert named == {"head": "output", "body": "hidden"}
    assert {group.role for group in coverage(Net(), output=["head", "body"]).groups} == {"output"}
    with pytest.raises(MHEError, match="output pattern 'haed' matches no neuron group; did you mean head"):
        neuron_groups(Net(), output="haed")


def test_output_that_the_model_tells() -> None:
    """If this failed, timm's models, which answer `get_classifier()`, would have no output layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 4)
            self.body = nn.Linear(8, 6)

        def get_classifier(self) -> nn.Module:
            return self.head

    roles = {group.name: group.role for group in neuron_groups(nn.Sequential(Net(), nn.Linear(4, 4), nn.ReLU()))}
    assert roles == {"0.head": "output", "0.body": "hidden", "1": "hidden"}


def test_trainable_only() -> None:
    """If this failed, frozen layers would cost a walk at each step for a gradient that nobody takes."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    model[0].requires_grad_(False)
    assert [group.name for group in neuron_groups(model, trainable_only=True)] == ["1"]
    assert [group.requires_grad for group in neuron_groups(model)] == [False, True]
    model[0].requires_grad_(True)
    assert len(neuron_groups(model, trainable_only=True)) == 2


def test_tie_made_by_hand_is_one_group() -> None:
    """If this failed, weights shared between plain modules would be counted once per use."""
    first, second = nn.Linear(5, 4), nn.Linear(5, 4)
    second.weight = first.weight
    (group,) = neuron_groups(nn.ModuleDict({"a": first, "b": second}))
    assert group.parameters == ("a.weight", "b.weight")
    assert group.aliases == ("b",)
    decoder = nn.Linear(5, 7, bias=False)
    embedding = nn.Embedding(7, 5)
    decoder.weight = embedding.weight
    (group,) = neuron_groups(nn.ModuleDict({"decoder": decoder, "embedding": embedding}))
    assert (group.name, group.role, group.kind) == ("embedding", "embedding", "embedding")
    assert group.parameters == ("embedding.weight", "decoder.weight")
    assert torch.equal(group.matrix(), decoder.weight)

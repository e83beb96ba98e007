"""`include` and `exclude`: what a pattern means, and what happens when it means nothing."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import neuron_groups, select_groups


@pytest.fixture(scope="module")
def model() -> nn.Module:
    layer = {"query": nn.Linear(4, 4), "dense": nn.Linear(4, 6)}
    layers = nn.ModuleList([nn.ModuleDict(layer), nn.ModuleDict({"dense": nn.Linear(4, 6)}), *[nn.Identity()] * 8])
    layers.append(nn.ModuleDict({"dense": nn.Linear(4, 6)}))
    conv = nn.Conv1d(8, 8, 3, groups=2)
    return nn.ModuleDict({"layer": layers, "conv": conv, "head": nn.Linear(6, 3)})


def chosen(model: nn.Module, **patterns: Any) -> list[str]:
    return [group.name for group in neuron_groups(model, **patterns)]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"include": "layer.*.dense"}, ["layer.0.dense", "layer.1.dense", "layer.10.dense"]),
        ({"include": "layer.?.dense"}, ["layer.0.dense", "layer.1.dense"]),
        ({"include": "layer.[01].*"}, ["layer.0.query", "layer.0.dense", "layer.1.dense"]),
        ({"include": "layer.1"}, ["layer.1.dense"]),
        ({"include": ["head", "layer.0"]}, ["layer.0.query", "layer.0.dense", "head"]),
        ({"include": "conv"}, ["conv.groups.0", "conv.groups.1"]),
        ({"include": "conv.groups.1"}, ["conv.groups.1"]),
        ({"include": "*conv"}, ["conv.groups.0", "conv.groups.1"]),
        ({"include": r"re:^layer\.\d\.dense$"}, ["layer.0.dense", "layer.1.dense"]),
        ({"include": "re:query|head"}, ["layer.0.query", "head"]),
        ({"include": "layer", "exclude": "*.dense"}, ["layer.0.query"]),
        ({"exclude": ["layer", "re:conv"]}, ["head"]),
        ({"include": []}, []),
    ],
)
def test_patterns_choose_by_dotted_name(model: nn.Module, patterns: dict[str, Any], expected: list[str]) -> None:
    """If this failed, `include` and `exclude` would regularize other layers than the user wrote."""
    assert chosen(model, **patterns) == expected


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            {"include": "layer.0.dence"},
            "include pattern 'layer.0.dence' matches no neuron group; did you mean layer.0.d",
        ),
        ({"exclude": "layer.*.key"}, "exclude pattern 'layer.*.key' matches no neuron group; did you mean layer."),
        (
            {"include": ["head", "zzzz"]},
            "include pattern 'zzzz' matches no neuron group; names look like layer.0.query",
        ),
        (
            {"include": "Layer.0.dense"},
            "include pattern 'Layer.0.dense' matches no neuron group; did you mean layer.0.d",
        ),
        ({"include": "*.qurey"}, "include pattern '*.qurey' matches no neuron group; did you mean layer.0.query?"),
        (
            {"include": "model.layer.1.dense"},
            "include pattern 'model.layer.1.dense' matches no neuron group; did you mean layer.1.dense, ",
        ),
        (
            {"include": "re:^layer[.]1[.]desne$"},
            "include pattern 're:^layer[.]1[.]desne$' matches no neuron group; did you mean layer.1.dense, ",
        ),
        ({"exclude": "LAYER.0.*"}, "exclude pattern 'LAYER.0.*' matches no neuron group; did you mean layer.0.query"),
        ({"include": 3}, "include is 3; it must be a pattern, or a list of patterns"),
        ({"include": "re:(", "exclude": None}, "include pattern 're:(' is not a valid regular expression"),
        ({"include": ""}, "include holds ''; a pattern is a glob"),
        ({"exclude": [3]}, "exclude holds 3; a pattern is a glob"),
    ],
)
def test_bad_patterns_are_named(model: nn.Module, patterns: dict[str, Any], message: str) -> None:
    """If this failed, a misspelt layer would silently be regularized, or silently not."""
    with pytest.raises(MHEError) as error:
        neuron_groups(model, **patterns)
    assert str(error.value).startswith(message)


def test_no_groups_at_all_is_said() -> None:
    """If this failed, the error for a model without neurons would list no names and no reason."""
    with pytest.raises(MHEError, match="matches no neuron group; the model has no neuron groups"):
        select_groups([], include="head")
    assert neuron_groups(nn.LayerNorm(4)) == []

"""Which modules of a model are members of one stack, and what they are made of."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from hf_mhe import MHEError
from hf_mhe.neurons import Stack, stacks
from tests.neurons.with_members import MODELS

L = "model.layers"
EXPERTS = {
    "mixtral": [(f"{L}.0.mlp.experts.*", 3), (f"{L}.1.mlp.experts.*", 3)],
    "gpt-oss": [(f"{L}.0.mlp.experts.*", 3), (f"{L}.1.mlp.experts.*", 3)],
    "qwen2-moe": [(f"{L}.0.mlp.experts.*", 3), (f"{L}.1.mlp.experts.*", 3)],  # without the shared one
    "deepseek": [(f"{L}.1.mlp.experts.*", 4), (f"{L}.2.mlp.experts.*", 4)],  # the first layer has none
}
HEADS = {
    "llama": [(f"{L}.{i}.self_attn.{p}.head.*", k) for i in (0, 1) for p, k in (("q_proj", 4), ("k_proj+v_proj", 2))],
    "gpt2": [(f"transformer.h.{i}.attn.c_attn.q+c_attn.k+c_attn.v.head.*", 4) for i in (0, 1)],
    "bert": [(f"encoder.layer.{i}.attention.self.query+key+value.head.*", 4) for i in (0, 1)],
}
LAYERS = {
    "mixtral": [(f"{L}.*", 2)],
    "deepseek": [(f"{L}.*", 2)],  # the first layer is another
    "llama": [(f"{L}.*", 2)],
    "gpt2": [("transformer.h.*", 2)],
    "bert": [("encoder.layer.*", 2)],
}
CASES = [
    (kind, name) for kind, table in (("experts", EXPERTS), ("heads", HEADS), ("layers", LAYERS)) for name in table
]
EXPECTED = {"experts": EXPERTS, "heads": HEADS, "layers": LAYERS}


def named(found: list[Stack]) -> list[tuple[str, int]]:
    return [(stack.name, stack.k) for stack in found]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_members_of_a_model(kind: Any, name: str) -> None:
    """An expert, head or layer would be compared with what is none, or be left out."""
    with torch.device("meta"):
        model = MODELS[name]()
    assert named(stacks(model, [kind])) == EXPECTED[kind][name]


def test_what_an_expert_and_a_layer_are_made_of() -> None:
    """A router, or the experts that see every token, would be pushed apart with the experts."""
    with torch.device("meta"):
        model = MODELS["qwen2-moe"]()
    (expert, *_), (layer,) = stacks(model, ["experts"]), stacks(model, ["layers"])
    assert expert.slots == ("gate", "up", "down")
    assert expert.size == 3 * 16 * 8
    assert "mlp.shared_expert.up_proj" in layer.slots
    assert layer.size == sum(p.numel() for p in model.model.layers[0].parameters() if p.dim() > 1) - 16  # gate of one


def test_experts_in_lists() -> None:
    """Experts that a model has as modules would not be found, or those that are shared would be."""

    def mlp(width: int = 6) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4))

    block = nn.ModuleDict(
        {
            "gate": nn.Linear(4, 3),
            "experts": nn.ModuleList([mlp(), mlp(), mlp(9), mlp(9), mlp(5)]),
            "shared_experts": nn.ModuleList([mlp(), mlp()]),
        }
    )
    found = stacks(nn.Sequential(block), ["experts"])
    assert [stack.name for stack in found] == ["0.experts.*"] * 2
    assert [[member[0].name for member in stack.members] for stack in found] == [
        ["0.experts.0.0", "0.experts.1.0"],
        ["0.experts.2.0", "0.experts.3.0"],  # of another width, and one has nobody to be compared with
    ]


def test_members_that_share_their_weights() -> None:
    """A member that is another one would be pushed away from itself."""
    experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)) for _ in range(4))
    experts[2] = experts[0]
    experts[3][1].weight = experts[1][1].weight  # one matrix of two
    (stack,) = stacks(nn.ModuleDict({"experts": experts}), ["experts"])
    assert stack.k == 3
    assert [[group.name for group in member] for member in stack.members] == [
        ["experts.0.0", "experts.0.1"],
        ["experts.1.0", "experts.1.1"],
        ["experts.3.0", "experts.1.1"],
    ]


def test_layers_within_stages() -> None:
    """The blocks of a stage would be left out where stages have different shapes."""
    stages = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(3)) for width in (4, 5))
    assert named(stacks(stages, ["layers"])) == [("0.*", 3), ("1.*", 3)]


def test_include_and_exclude_choose() -> None:
    """Layers that are left out of the penalty would be pushed apart all the same."""
    with torch.device("meta"):
        model = MODELS["mixtral"]()
    (stack,) = stacks(model, ["experts"], include="model.layers.1.mlp.experts.*.down")
    assert (stack.name, stack.slots) == ("model.layers.1.mlp.experts.*", ("down",))
    (heads,) = stacks(model, ["heads"], include="*.0.self_attn.q_proj")
    assert heads.name == "model.layers.0.self_attn.q_proj.head.*"
    with pytest.raises(MHEError, match="no two experts of one shape to push apart among the groups that include"):
        stacks(model, ["experts"], exclude="*experts*")


def test_a_model_without_such_modules() -> None:
    """Nothing would be regularized in silence, or the user not be told what there is."""
    with torch.device("meta"):
        model = MODELS["bert"]()
    has = "it has heads: 2 x 4 (encoder.layer.0.attention.self.query+key+value.head.*, ...); layers: 1 x 2 (encoder."
    with pytest.raises(MHEError, match=r"across='experts': BertModel has no two experts.*" + re.escape(has)):
        stacks(model, ["layers", "experts"])
    with pytest.raises(MHEError, match="neither experts nor heads nor repeated layers"):
        stacks(nn.Linear(3, 4), ["heads"])

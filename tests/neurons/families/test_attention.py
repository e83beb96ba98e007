"""The groups called q, k, v are what attention multiplies: the model's own forward decides, with one group zeroed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_mhe.neurons import neuron_groups
from tests.neurons.families.family import IDS, Family, Shown
from tests.neurons.families.table import FAMILIES
from tests.neurons.families.watch import attention, without_bias, zeroed

Parts = Mapping[str, Tensor]
WITH_ATTENTION = sorted(name for name, family in FAMILIES.items() if family.attention)


def _owners(family: Family, groups: Iterable[str]) -> list[str]:
    """The attention modules: all that have the first of the family's groups."""
    first = next(iter(family.attention))
    found = sorted({name.removesuffix(f".{first}") for name in groups if name.endswith(f".{first}")})
    assert found
    return found


def _forward(family: Family, model: nn.Module, owner: str) -> Parts:
    with torch.no_grad(), attention({owner: model.get_submodule(owner)}) as found:
        model(**family.inputs)
    return found[owner]


def _assert_gone(found: Parts, whole: Parts, shown: Shown) -> None:
    """What a zeroed group gives is zero, and everything else is what it was, to the last bit."""
    for part, value in found.items():
        gone = torch.zeros(value.shape[-1], dtype=torch.bool)
        if part in shown:
            gone[shown[part]] = True
        assert not value[..., gone].any(), part
        assert torch.equal(value[..., ~gone], whole[part][..., ~gone]), part


@pytest.mark.quick_cases(13)
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_a_zeroed_projection_vanishes_where_attention_consumes_it(name: str) -> None:
    """If this failed, a group called q would hold keys or values, or rows of another projection."""
    family = FAMILIES[name]
    model = without_bias(family.build())
    groups = {group.name: group for group in neuron_groups(model)}
    for owner in _owners(family, groups):
        whole = _forward(family, model, owner)
        assert all(part.any() for part in whole.values())
        for suffix, shown in family.attention.items():
            with zeroed(groups[f"{owner}.{suffix}"]):
                _assert_gone(_forward(family, model, owner), whole, shown)


@pytest.mark.quick_cases(13)
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_a_zeroed_head_vanishes_alone(name: str) -> None:
    """If this failed, `by_head` would cut through heads, or number them otherwise than attention does."""
    family = FAMILIES[name]
    model = without_bias(family.build())
    groups = neuron_groups(model, by_head=True)
    owner = _owners(family, [group.name.partition(".head.")[0] for group in groups])[0]

    def forward() -> dict[str, Tensor]:
        # (batch, heads, ..., length, head), or batch and heads in one: head by head
        found = {
            part: value.movedim(min(1, value.ndim - 3), 0) for part, value in _forward(family, model, owner).items()
        }
        return {part: value.reshape(-1, *value.shape[-2:]) for part, value in found.items()}

    whole = forward()
    told = set()
    for suffix, shown in family.attention.items():
        heads = {g.name.rpartition(".")[2]: g for g in groups if g.name.startswith(f"{owner}.{suffix}.head.")}
        if not heads:
            continue
        assert list(heads) == [str(index) for index in range(len(heads))]
        (part,) = shown
        told.add(part)
        # attention may have spread each key and value head over the query heads that share it
        shared = len(whole[part]) // len(heads)
        assert shared * len(heads) == len(whole[part])
        for index, group in heads.items():
            with zeroed(group):
                found = forward()
            mine = torch.arange(len(whole[part])) // shared == int(index)
            _assert_gone({part: found[part][mine]}, {part: whole[part][mine]}, shown)
            assert torch.equal(found[part][~mine], whole[part][~mine])
            assert all(torch.equal(found[other], whole[other]) for other in {"q", "k", "v"} - {part})
    assert told == {"q", "k", "v"}


def test_a_zeroed_projection_leaves_its_bias(build: Callable[..., Any]) -> None:
    """If this failed, the rows of a group and the entries of the bias that go with them would be different ones."""
    model = build("gpt2").eval()
    fused = model.transformer.h[0].attn.c_attn
    with torch.no_grad():
        fused.bias.copy_(torch.randn(96))
    for index, part in enumerate("qkv"):
        (group,) = neuron_groups(model, include=f"transformer.h.0.attn.c_attn.{part}")
        with torch.no_grad(), zeroed(group), attention({"h": model.transformer.h[0].attn}) as found:
            model(**IDS)
        bias = fused.bias.detach().chunk(3)[index].view(1, 4, 1, 8)
        assert torch.equal(found["h"][part], bias.expand(1, 4, 6, 8))


def test_gated_delta_net(build: Callable[..., Any]) -> None:
    """If this failed, Qwen3-Next's linear attention would have its queries, keys, values and gates mixed up."""
    model = build("qwen3_next").eval()
    net = model.model.layers[0].linear_attn
    fused = {group.name.rpartition(".")[2]: group for group in neuron_groups(model, include="*.in_proj_*")}
    names = ("q", "k", "v", "z", "b", "a")
    assert set(fused) == set(names)
    hidden = torch.rand(1, 5, 32)

    def split() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            mixed = net.fix_query_key_value_ordering(net.in_proj_qkvz(hidden), net.in_proj_ba(hidden))
        return dict(zip(names, mixed, strict=True))

    whole = split()
    for name in names:
        with zeroed(fused[name]):
            found = split()
        assert not found[name].any()
        assert all(torch.equal(found[other], whole[other]) for other in names if other != name), name


def test_the_queries_gate_is_apart(build: Callable[..., Any]) -> None:
    """If this failed, Qwen3-Next's output gate would be taken for queries: with it zero, attention is halved."""
    model = build("qwen3_next").eval()
    owner = "model.layers.1.self_attn"
    groups = {group.name: group for group in neuron_groups(model)}
    into_output: list[torch.Tensor] = []
    model.get_submodule(f"{owner}.o_proj").register_forward_pre_hook(lambda _, given: into_output.append(given[0]))
    with torch.no_grad(), attention({owner: model.get_submodule(owner)}) as found:
        model(**IDS)
        whole = found[owner]
        gates = groups[f"{owner}.q_proj.gate"]
        with zeroed(gates):
            model(**IDS)
    assert all(torch.equal(found[owner][part], whole[part]) for part in "qkv")
    ratio = into_output[1] / into_output[0]  # sigmoid(0) over sigmoid(gate)
    assert (ratio > 0.25).all()
    assert not torch.allclose(ratio, torch.ones(()))

"""The adapter's own matrices as neurons: what it reads (rows of A) and what it writes (columns of B)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

peft = pytest.importorskip("peft")

from hf_mhe.neurons import coverage, neuron_groups  # noqa: E402
from tests.neurons.adapters.cases import CASES, Case, adapt, groups_of, layers, stir, unaccounted  # noqa: E402

Build = Callable[..., nn.Module]
SIZES = {  # kind -> what one neuron of A reads, what one of B writes
    "linear": (12, 20),
    "transposed": (12, 20),
    "embedding": (10, 12),
    "conv": (4 * 9, 6),
    "attention": (12, 36),
}


@pytest.mark.parametrize("kind", SIZES)
def test_each_rank_is_a_neuron_that_reads_and_one_that_writes(kind: str) -> None:
    """B A would not be the sum over ranks of (what is written) times (what is read)."""
    model = adapt(Case("lora", arguments={"r": 3, "lora_alpha": 6}), kind)
    own = {group.name: group for group in neuron_groups(model, adapters="own")}
    names = [f"{kind}.{side}.default" for side in ("lora_embedding_A", "lora_embedding_B") if side in str(list(own))]
    names = names or [f"{kind}.lora_A.default", f"{kind}.lora_B.default"]
    reads, writes = (own[name].matrix() for name in names)
    assert (reads.shape, writes.shape) == ((3, SIZES[kind][0]), (3, SIZES[kind][1]))
    added = 2 * sum(torch.outer(write, read) for write, read in zip(writes, reads, strict=True))
    bare = layers()
    base = {"embedding": bare.embedding.weight.T, "transposed": bare.transposed.weight.T}
    base["attention"] = bare.attention.in_proj_weight
    weight = base.get(kind, getattr(getattr(bare, kind), "weight", None))
    whole = torch.cat([group.matrix() for group in groups_of(model, kind) if "out_proj" not in group.name])
    torch.testing.assert_close(whole.T if kind == "embedding" else whole, weight.flatten(1) + added)


def test_base_weights_are_groups_of_their_own() -> None:
    """The layers would be measured with the adapter, although its matrices were asked for."""
    model = adapt(CASES["lora"], "linear")
    groups = {group.name: group for group in neuron_groups(model, adapters="own")}
    assert torch.equal(groups["linear"].matrix(), layers().linear.weight)
    assert [g.name for g in neuron_groups(model, adapters="own", trainable_only=True)] == [
        "linear.lora_A.default",
        "linear.lora_B.default",
    ]


def test_experts_have_matrices_of_their_own(build: Build) -> None:
    """The ranks of different experts, which lie in one parameter, would be compared with each other."""
    config = peft.LoraConfig(target_modules=[], target_parameters=["mlp.experts.down_proj"], r=3, lora_alpha=3)
    model = stir(peft.get_peft_model(build("mixtral").double(), config, autocast_adapter_dtype=False))
    own = {group.name: group.matrix() for group in neuron_groups(model, adapters="own")}
    effective = {group.name: group.matrix() for group in neuron_groups(model)}
    base = {group.name: group.matrix() for group in neuron_groups(build("mixtral").double())}
    experts = "model.layers.1.mlp.experts"
    for expert in range(4):
        reads = own[f"{experts}.down_proj.lora_A.default.{expert}"]
        writes = own[f"{experts}.down_proj.lora_B.default.{expert}"]
        added = effective[f"{experts}.{expert}.down"] - base[f"{experts}.{expert}.down"]
        torch.testing.assert_close(writes.T @ reads, added)
    assert unaccounted(model, adapters="own") == []


@pytest.mark.parametrize("name", ["oft exact", "loha", "adalora", "vera", "ia3 outputs"])
def test_methods_without_such_matrices_say_so(name: str) -> None:
    """A method's parameters would be dropped in silence, or taken for directions."""
    model = adapt(CASES[name], "linear")
    skipped = coverage(model, adapters="own").skipped
    assert unaccounted(model, adapters="own") == []
    assert "linear" in [group.name for group in neuron_groups(model, adapters="own")]
    for parameter, reason in skipped.items():
        assert "holds no neurons of its own" in reason or "no neurons by itself" in reason, parameter


@pytest.mark.parametrize("change", ["merged", "disabled"])
def test_adapters_that_take_no_part_have_no_groups(change: str) -> None:
    """An adapter that is switched off would still be measured."""
    model: Any = adapt(CASES["lora"], "linear")
    if change == "merged":
        model.merge_adapter()
    else:
        model.base_model.disable_adapter_layers()
    assert not any("lora" in group.name for group in neuron_groups(model, adapters="own"))
    assert change in coverage(model, adapters="own").skipped["base_model.model.linear.lora_A.default.weight"]

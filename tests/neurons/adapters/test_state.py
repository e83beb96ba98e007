"""Adapters come and go while groups are held; wrappers come around them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

peft = pytest.importorskip("peft")

from hf_mhe.errors import MHEError  # noqa: E402
from hf_mhe.neurons import coverage, neuron_groups  # noqa: E402
from tests.neurons.adapters.cases import CASES, adapt, furthest, layers, matrices, merged, stir, unaccounted  # noqa: E402

Build = Callable[..., nn.Module]
LINEAR = peft.LoraConfig(target_modules=["linear"], r=4, lora_alpha=6)


@pytest.fixture
def model() -> Any:
    """Two LoRA adapters around one layer, the first active."""
    found = adapt(CASES["lora"], "linear")
    found.add_adapter("second", LINEAR)
    found.double().set_adapter("second")
    stir(found, seed=2).set_adapter("default")
    return found


def linear(model: nn.Module) -> Any:
    return next(group for group in neuron_groups(model) if group.name == "linear")


CHANGES: dict[str, Callable[[Any], object]] = {
    "another adapter active": lambda model: model.set_adapter("second"),
    "both active": lambda model: model.base_model.set_adapter(["default", "second"]),
    "merged": lambda model: model.merge_adapter(),
    "disabled": lambda model: model.base_model.disable_adapter_layers(),
    "deleted": lambda model: model.delete_adapter("default"),
    "unloaded": lambda model: model.unload(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_groups_of_other_adapters_than_now_are_refused(change: str, model: Any) -> None:
    """A regularizer bound to one adapter would go on with its weight while another one is trained."""
    group = linear(model)
    group.matrix()
    CHANGES[change](model)
    with pytest.raises(MHEError, match=r"make the (neuron )?groups again"):
        group.matrix()
    again = linear(model)
    assert again.matrix().shape == (group.n, group.d)
    assert unaccounted(model) == []


def test_groups_are_good_again_when_the_adapters_are(model: Any) -> None:
    """Looking at the model without its adapter would end the training of the regularizer."""
    group = linear(model)
    before = group.matrix()
    with model.disable_adapter(), pytest.raises(MHEError, match="disabled"):
        group.matrix()
    assert torch.equal(group.matrix(), before)
    model.merge_adapter()
    model.unmerge_adapter()
    torch.testing.assert_close(group.matrix(), before, rtol=1e-12, atol=1e-12)


def test_merged_yet_disabled_is_refused(model: Any) -> None:
    """peft unmerges such a layer at its next forward pass: its stored weight is none that it computes with."""
    model.merge_adapter()
    model.base_model.disable_adapter_layers()
    name = "base_model.model.linear.base_layer.weight"
    assert "unmerge_adapter() first" in coverage(model).skipped[name]
    assert unaccounted(model) == []


def test_what_is_not_active_is_listed_with_the_reason(model: Any) -> None:
    """Parameters of an idle adapter would be missing from both lists."""
    skipped = coverage(model).skipped
    for matrix in ("lora_A", "lora_B"):
        assert "not active" in skipped[f"base_model.model.linear.{matrix}.second.weight"]
    model.merge_adapter(["second"])
    assert "merged" in coverage(model).skipped["base_model.model.linear.lora_A.second.weight"]
    with model.disable_adapter():
        # A model with merged adapters unmerges when it runs disabled: asked before that, it is refused.
        assert "disabled" in coverage(model).skipped["base_model.model.linear.lora_A.default.weight"]


def test_only_the_active_adapter_trains(model: Any) -> None:
    """The penalty's gradient would reach the frozen base or an adapter at rest."""
    model.train()
    (group,) = neuron_groups(model, trainable_only=True)
    assert group.name == "linear"
    group.matrix().square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {f"base_model.model.linear.lora_{matrix}.default.weight" for matrix in "AB"}
    model.requires_grad_(False)
    assert neuron_groups(model, trainable_only=True) == []


def test_adapters_of_different_methods_at_once() -> None:
    """A mixed model would count one of its adapters only, or both against the same base weight."""
    model = peft.PeftMixedModel(layers(), LINEAR, "a")
    model.add_adapter("b", peft.LoHaConfig(target_modules=["linear"], r=2))
    model.add_adapter("c", peft.OFTConfig(target_modules=["square"], oft_block_size=4))
    model.set_adapter(["a", "b", "c"])
    stir(model.double()).eval()
    for kind in ("linear", "square"):
        (rows,) = matrices(model, kind).values()
        with torch.no_grad():
            bare = layers()
            getattr(bare, kind).weight.copy_(rows)
        torch.testing.assert_close(model(kind), bare(kind), rtol=1e-12, atol=1e-12)
    assert unaccounted(model) == []


class Around(nn.Module):
    """A user's module that holds an adapted one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "both": lambda model: torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager"),  # type: ignore
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_not_in_the_names(wrapper: str, model: Any, group_of_one: None) -> None:
    """The same adapted layer would go by another name under each engine."""
    plain = neuron_groups(model)
    wrapped = WRAPPERS[wrapper](model)
    found = neuron_groups(wrapped)
    assert [(group.name, group.parameters) for group in found] == [(g.name, g.parameters) for g in plain]
    assert all(torch.equal(a.matrix(), b.matrix()) for a, b in zip(found, plain, strict=True))
    assert set(coverage(wrapped).skipped) == set(coverage(model).skipped)


def test_adapted_model_inside_a_module(model: Any) -> None:
    """The names of peft's own modules would show through."""
    assert "inner.linear" in [group.name for group in neuron_groups(Around(model))]


def test_adapters_without_a_peft_model() -> None:
    """Layers that transformers or diffusers adapt in place, without a PeftModel around, would be read as plain."""
    model = stir(peft.inject_adapter_in_model(LINEAR, layers())).double()
    reference = adapt(CASES["lora"], "linear")
    assert [group.name for group in neuron_groups(model)] == [group.name for group in neuron_groups(reference)]
    merging = copy.deepcopy(model)
    merging.linear.merge()
    assert furthest(matrices(model, "linear"), matrices(merging, "linear")) < 1e-12
    assert furthest(matrices(model, "linear"), matrices(layers(), "linear")) > 1e-3


def test_adapter_loaded_for_inference(build: Build, tmp_path: Path) -> None:
    """A loaded adapter would not count, or would seem to train."""
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    trained = peft.get_peft_model(build("llama"), config)
    trained.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build("llama"), tmp_path)
    assert neuron_groups(loaded, trainable_only=True) == []
    found = {group.name: group.matrix() for group in neuron_groups(loaded)}
    assert furthest(found, {group.name: group.matrix() for group in neuron_groups(merged(trained))}) < 1e-6


@pytest.mark.parametrize("told", ["both", None, 1])
def test_unknown_choice_of_matrices(told: Any, model: Any) -> None:
    """A misspelt choice would silently be the effective weights."""
    with pytest.raises(MHEError, match=r"adapters is .*; it must be one of 'effective', 'own'"):
        neuron_groups(model, adapters=told)

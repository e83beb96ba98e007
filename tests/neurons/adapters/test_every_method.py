"""Every method of peft: the weight read is the one that the layer computes with, and the one that merging sets.

Sources of the formulas are peft's own forward passes and `merge`; nothing here repeats the code under test.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft")

from hf_mhe.neurons import coverage  # noqa: E402
from hf_mhe.neurons.adapters.methods import METHODS, OF_THE_INPUT  # noqa: E402
from tests.neurons.adapters.cases import (  # noqa: E402
    CASES,
    Case,
    adapt,
    apart_from_a_bias,
    config_of,
    furthest,
    groups_of,
    layers,
    matrices,
    merged,
    stir,
    unaccounted,
    with_weights,
)

EVERY = [pytest.param(case, kind, id=f"{name}-{kind}") for name, case in CASES.items() for kind in case.kinds]


def test_every_method_that_changes_weights_has_a_case() -> None:
    """A method would be read by a formula that nothing checks."""
    assert {case.method for case in CASES.values()} == set(METHODS)


def test_no_method_of_the_installed_peft_is_unknown() -> None:
    """A new method of peft would be met for the first time by a user."""
    tuners = {tuner.__module__.split(".")[2] for tuner in peft.PEFT_TYPE_TO_TUNER_MAPPING.values()}
    prompts = {"adaption_prompt", "cartridge", "cpt", "multitask_prompt_tuning", "p_tuning", "prefix_tuning"}
    mixtures = {"xlora"}  # of LoRA layers
    others = {"prompt_tuning", "ln_tuning"}
    assert tuners <= set(METHODS) | OF_THE_INPUT | prompts | mixtures | others


@pytest.mark.quick_cases(16)
@pytest.mark.parametrize(("case", "kind"), EVERY)
def test_weight_is_the_merged_one(case: Case, kind: str) -> None:
    """The energies of a model with adapters would not be those of the model that is published."""
    model = adapt(case, kind)
    found, bare = matrices(model, kind), matrices(layers(), kind)
    tolerance = 1e-6 if case.rounds else 1e-12
    assert furthest(found, matrices(merged(model), kind)) < tolerance
    described = [(group.name, group.kind, group.role, group.n, group.d) for group in groups_of(layers(), kind)]
    assert described == [(group.name, group.kind, group.role, group.n, group.d) for group in groups_of(model, kind)]
    if case.method != "beft":  # it trains a bias
        assert furthest(found, bare) > 1e-3
    assert unaccounted(model) == []
    model.merge_adapter()
    assert furthest(found, matrices(model, kind)) < tolerance
    assert unaccounted(model) == []
    if case.method == "osf":  # peft cannot take it off again
        return
    model.unmerge_adapter()
    # peft comes back from float32 where it computes there.
    assert furthest(found, matrices(model, kind)) < max(tolerance, 1e-6)


@pytest.mark.parametrize(("case", "kind"), EVERY)
def test_weight_is_the_one_the_layer_computes_with(case: Case, kind: str) -> None:
    """Merging and the forward pass of peft could differ, and the wrong one of the two be read."""
    model = adapt(case, kind)
    difference = model(kind) - with_weights(matrices(model, kind), kind)(kind)
    assert apart_from_a_bias(difference, kind) < (1e-6 if case.rounds else 1e-12)


@pytest.mark.parametrize(("case", "kind"), [case for case in EVERY if not case.values[0].own_gradient])
def test_gradient_is_that_of_the_weight(case: Case, kind: str) -> None:
    """The penalty would push the adapter elsewhere than downhill: finite differences along a random direction."""
    model = adapt(case, kind)
    groups = groups_of(model, kind)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(4)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    chosen = [like(group.matrix()) for group in groups]

    def value() -> Tensor:
        # Not linear in the weight, as no energy is.
        rows = (torch.nn.functional.normalize(group.matrix(), dim=1) for group in groups)
        return sum((row * weight).sum() for row, weight in zip(rows, chosen, strict=True))

    if case.method == "beft":
        assert not value().requires_grad
        return
    gradients = torch.autograd.grad(value(), trained, allow_unused=True)
    directions = [like(parameter) for parameter in trained]
    slope = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True) if g is not None)
    assert slope != 0
    start = [parameter.detach().clone() for parameter in trained]
    step = 1e-4 if case.rounds else 1e-5
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            for parameter, origin, direction in zip(trained, start, directions, strict=True):
                parameter.copy_(origin + sign * step * direction)
            values.append(float(value()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(
        slope, rel=1e-2 if case.rounds else 1e-6, abs=1e-2 if case.rounds else 1e-6
    )


@pytest.mark.parametrize(("case", "kind"), [case for case in EVERY if case.values[0].own_gradient])
def test_gradient_is_the_methods_own(case: Case, kind: str) -> None:
    """A method that defines its gradient otherwise would get one from the penalty that its task loss never gives."""
    model = adapt(case, kind)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    output = model(kind)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(4)).to(output.dtype)
    expected = torch.autograd.grad((output * upstream).sum(), trained)
    (weight,) = (group.matrix() for group in groups_of(model, kind))
    same = torch.func.functional_call(layers(), {f"{kind}.weight": weight}, (kind,))
    for found, gradient in zip(torch.autograd.grad((same * upstream).sum(), trained), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("case", "kind"), EVERY)
def test_reading_leaves_the_model_as_it_is(case: Case, kind: str) -> None:
    """peft's own `get_delta_weight` replaces half-precision parameters: looking would train, or break an optimizer."""
    model = adapt(case, kind, torch.bfloat16).train()
    before = {name: (held, held.detach().clone()) for name, held in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for group in groups_of(model, kind):
        rows = group.matrix()
        assert rows.isfinite().all()
        if rows.requires_grad:
            rows.float().square().sum().backward()
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (tensor, values) in before.items():
        if kind != "attention":  # peft makes the base weights of an attention anew whenever modules are listed
            assert after[name] is tensor, name
        assert torch.equal(tensor, values), name


# peft itself refuses a second trained AdaLoRA, and a second adapter for the same token; several C3A: see below.
ALONE = ("adalora", "trainable_tokens", "c3a")
TWO = {name: case for name, case in CASES.items() if case.method not in ALONE}


@pytest.mark.parametrize("name", sorted(TWO))
def test_several_adapters_and_the_active_one(name: str) -> None:
    """An adapter that is not active would count, or of several active ones only the first."""
    case, kind = TWO[name], TWO[name].kinds[0]
    model = adapt(case, kind)
    first = matrices(model, kind)
    model.add_adapter("second", config_of(case, kind))
    dtype = next(model.parameters()).dtype
    model.to(dtype)
    model.set_adapter("second")
    stir(model, seed=2).eval()
    second = matrices(model, kind)
    tolerance = 1e-6 if case.rounds else 1e-12
    assert furthest(second, matrices(merged(model), kind)) < tolerance
    model.base_model.set_adapter(["default", "second"])
    both = matrices(model, kind)
    difference = model(kind) - with_weights(both, kind)(kind)
    assert apart_from_a_bias(difference, kind) < tolerance
    model.set_adapter("default")
    assert furthest(matrices(model, kind), first) < tolerance
    skipped = coverage(model).skipped
    second_only = [name for name, _ in model.named_parameters() if ".second" in name and name in skipped]
    assert all("not active" in skipped[name] for name in second_only)
    with model.disable_adapter():
        assert furthest(matrices(model, kind), matrices(layers(dtype), kind)) == 0
    assert unaccounted(model) == []


def test_kinds_that_are_not_one_weight_are_refused_by_name() -> None:
    """A layer without one weight would be measured by a number that nothing computes with."""
    refused = [("oft", "conv", "merge_adapter() sets one"), ("hra", "conv", "call merge_adapter() first")]
    for method, kind, told in refused:
        arguments = {"oft_block_size": 4} if method == "oft" else {}
        model = adapt(Case(method, arguments=arguments), kind)
        _check_refused(model, kind, told)
        model.merge_adapter()
        assert furthest(matrices(model, kind), matrices(merged(model), kind)) == 0
    _check_refused(adapt(Case("lora", arguments={"r": 2}), "grouped"), "grouped", "mixes the groups")
    oft = adapt(Case("oft", arguments={"oft_block_size": 3}), "grouped")
    _check_refused(oft, "grouped", "rotates all inputs of a grouped convolution together")


def _check_refused(model: nn.Module, kind: str, told: str) -> None:
    assert groups_of(model, kind) == []
    assert told in coverage(model).skipped[f"base_model.model.{kind}.base_layer.weight"]
    assert unaccounted(model) == []


def test_inputs_of_a_grouped_convolution_are_scaled_by_group() -> None:
    """(IA)3 on inputs, which peft computes and cannot merge, would scale the wrong channels."""
    model = adapt(CASES["ia3 inputs"], "grouped")
    difference = model("grouped") - with_weights(matrices(model, "grouped"), "grouped")("grouped")
    assert apart_from_a_bias(difference, "grouped") < 1e-12


def test_several_active_c3a_are_refused() -> None:
    """What peft merges would be taken for what the layer computes with: for C3A these two differ."""
    model = adapt(CASES["c3a"], "square")
    model.add_adapter("second", config_of(CASES["c3a"], "square"))
    stir(model.double(), seed=2)
    model.base_model.set_adapter(["default", "second"])
    _check_refused(model, "square", "activate one of default, second")

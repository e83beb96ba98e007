"""The members of the family in a training: one step by their formulas, what they draw, and what is said of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from hf_mhe import MHEConfig, MHEError, MHERegularizer, MHETrainer, neuron_groups
from hf_mhe.training.objectives.family_members import MEMBERS, ObjectiveName
from tests.engines import zoo
from tests.training.cases import HIDDEN, LEARNING_RATE, OUTPUT, TinyClassifier, make_tiny, tiny_data
from tests.training.definitions import DEFINITIONS, OPTIONS, penalty
from tests.training.loops import forget_accelerate, loop
from tests.training.trainers import logged_arguments, records

NAMES = tuple(DEFINITIONS)
DRAWN = tuple(name for name in NAMES if MEMBERS[name].draws)


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def config_of(name: str, **changes: Any) -> MHEConfig:
    settings = {"hidden_weight": HIDDEN, "output_weight": OUTPUT, "objective_options": OPTIONS.get(name)}
    return MHEConfig(**{**settings, "objective": name, **changes})


def tiny_terms(model: nn.Module) -> dict[str, tuple[Tensor, float, str]]:
    weights = {"body": (HIDDEN, "half"), "middle": (HIDDEN, "half"), "classifier": (OUTPUT, "full")}
    return {name: (model.get_parameter(f"{name}.weight"), *each) for name, each in weights.items()}


def gradient(name: str, model: nn.Module, terms: dict[str, tuple[Tensor, float, str]], step: int) -> dict[str, Tensor]:
    named = {key: value for key, value in model.named_parameters() if value.requires_grad}
    found = torch.autograd.grad(penalty(name, terms, step=step), list(named.values()), allow_unused=True)
    return {
        key: torch.zeros_like(value) if g is None else g for (key, value), g in zip(named.items(), found, strict=True)
    }


def test_every_member_of_the_family_can_be_chosen() -> None:
    """A member of the family could not be trained with, or would have no formula here."""
    assert set(get_args(ObjectiveName)) == {"energy", *MEMBERS} == {"energy", *DEFINITIONS}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_formula(name: str) -> None:
    """Training would minimize something else than the paper's objective, or at another weight.

    The second optimizer step, of two micro-batches each, in the warm-up: what is drawn depends on the step.
    """
    config = config_of(name, warmup_steps=4)
    arguments: dict[str, Any] = {"count": 16, "batch": 4, "accumulation": 2, "step": 1}
    plain, trained = (loop("tiny", with_penalty, config=config, **arguments) for with_penalty in (False, True))
    model = make_tiny().double()
    expected = gradient(name, model, tiny_terms(model), step=1)
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for key, value in expected.items():
        torch.testing.assert_close(trained[key] - plain[key], -LEARNING_RATE / 4 * value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["minimal_angle", "gram_determinant", "soft_orthogonality", "srip"])
def test_groups_of_every_kind(name: str) -> None:
    """Fused, tied, convolutional, transposed and derived weights would be penalized by rows that are no neurons."""
    model = zoo.make(torch.float64)
    config = config_of(name, embedding_weight=0.5, output=["back"])
    regularizer = MHERegularizer(model, config)
    q, k, v = model.attention.in_proj_weight.chunk(3)
    rows = {
        "embedding": model.embedding.weight,
        "conv": model.conv.weight.flatten(1),
        "transposed": model.transposed.weight.T,
        "hidden": model.hidden.weight,
        "normed": model.normed.weight,
        "back": model.back.weight,
        "unreached": model.unreached.weight,
        "attention.out_proj": model.attention.out_proj.weight,
    }
    names = {group.name: group.role for group in regularizer.groups}
    fused = [name for name in names if name not in rows]
    rows |= dict(zip(fused, (q, k, v), strict=True))
    weights = {"hidden": (HIDDEN, "half"), "output": (OUTPUT, "full"), "embedding": (0.5, "half")}
    expected = penalty(name, {each: (rows[each].double(), *weights[role]) for each, role in names.items()})
    torch.testing.assert_close(regularizer.penalty(), expected, rtol=1e-9, atol=0)
    parameters = [value for value in model.parameters() if value.requires_grad]
    found, wanted = (torch.autograd.grad(p, parameters, allow_unused=True) for p in (regularizer.penalty(), expected))
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_a_half_frozen_model(name: str) -> None:
    """Frozen layers would count, or move, or keep the others from moving."""
    model = make_tiny().double()
    model.body.requires_grad_(False)
    terms = {key: value for key, value in tiny_terms(model).items() if key != "body"}
    expected = gradient(name, model, terms, step=0)
    regularizer = MHERegularizer(model, config_of(name))
    loss = torch.zeros((), dtype=torch.float64)
    regularizer(loss).backward()
    assert model.body.weight.grad is None
    for key in ("middle.weight", "classifier.weight"):
        torch.testing.assert_close(model.get_parameter(key).grad, expected[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_is_of_the_seed_the_step_and_the_group(name: str) -> None:
    """Ranks, and a resumed training, would minimize different numbers; or each step the same projection."""
    model = make_tiny().double()

    def penalties(seed: int, steps: range) -> list[float]:
        regularizer = MHERegularizer(model, config_of(name), seed=seed)
        regularizer.load_state_dict({"step": steps.start})
        return [float(regularizer.advance().detach()) for _ in steps]

    whole = penalties(0, range(4))
    torch.manual_seed(5)  # no random number of the training's own is taken
    state = torch.get_rng_state()
    assert penalties(0, range(2, 4)) == whole[2:]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({*whole, *penalties(1, range(4))}) == 8
    twin = nn.Sequential(nn.Linear(6, 9), nn.Linear(6, 9)).double()
    twin[1].load_state_dict(twin[0].state_dict())
    first, second = MHERegularizer(twin, config_of(name)).evaluate().energies.tolist()
    assert first != second


def test_a_second_pass_of_a_step_draws_the_same() -> None:
    """Sharpness-aware minimization would measure the second gradient on another function than the first."""
    model = make_tiny().double()
    regularizer = MHERegularizer(model, config_of("comhe_random"))
    first = float(regularizer.advance(again=False).detach())
    assert float(regularizer.advance(again=True).detach()) == first
    assert float(regularizer.advance(again=False).detach()) != first


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_low_precision_and_under_autocast(name: str, dtype: torch.dtype) -> None:
    """Mixed precision would train on another number, or on none."""
    model = make_tiny().to(dtype)
    exact = make_tiny().to(dtype).double()
    regularizer = MHERegularizer(model, config_of(name))
    with torch.autocast("cpu", torch.bfloat16):
        found = regularizer.penalty()
    expected = penalty(name, tiny_terms(exact))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    found.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_start_at_zero_or_have_one_dimension(name: str) -> None:
    """One layer of LoRA, or of a regression, would stop a training by a member of the family."""
    model = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 5), nn.Linear(5, 3)).double()
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[2].weight[1] = 1e-25  # dead
    regularizer = MHERegularizer(model, config_of(name))
    value = regularizer(model(torch.ones(2, 1).double()).mean())
    value.backward()
    assert all(
        parameter.grad.isfinite().all() and parameter.grad.abs().max() < 1e4 for parameter in model.parameters()
    )
    zeros = dict(
        zip((group.name for group in regularizer.groups), regularizer.evaluate().energies.tolist(), strict=True)
    )
    assert zeros["1"] == {"soft_orthogonality": 5, "double_soft_orthogonality": 9, "coherence": 1}.get(
        name, pytest.approx(1) if name == "srip" else 0
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_is_not_finite_is_named(name: str) -> None:
    """A training that has gone wrong would go on, or stop without saying where."""
    model = make_tiny()
    with torch.no_grad():
        model.middle.weight[0, 0] = math.nan
    with pytest.raises(MHEError, match="'middle'"):
        MHERegularizer(model, config_of(name)).penalty()


def test_an_overflow_is_named() -> None:
    """The message would speak of an energy that nobody asked for."""
    model = make_tiny()
    with torch.no_grad():
        model.middle.weight.mul_(1e12)
    with pytest.raises(MHEError, match=r"the soft_orthogonality of neuron group 'middle' is inf: .*exclude='middle'"):
        MHERegularizer(model, config_of("soft_orthogonality")).penalty()


def test_settings_reach_the_members_that_take_them() -> None:
    """`space="full"` would be taken, and half space trained in."""
    model = make_tiny().double()
    rows = {key: (value[0], value[1], "full") for key, value in tiny_terms(model).items()}
    for name in ("minimal_angle", "separation", "gram_determinant", "comhe_random"):
        found = MHERegularizer(model, config_of(name, space="full")).penalty()
        torch.testing.assert_close(found, penalty(name, rows), rtol=1e-9, atol=0)
    steeper = {s: float(MHERegularizer(model, config_of("comhe_random", s=s)).penalty().detach()) for s in (1.0, 2.0)}
    assert steeper[1.0] != steeper[2.0]
    chord, arc = (
        MHERegularizer(model, config_of("separation", distance=each)).penalty() for each in ("euclidean", "angular")
    )
    assert arc < chord  # an arc is longer than its chord


# --- what is said of it


def test_repr_and_energies() -> None:
    """A printed regularizer would be taken for one of the energy, or `energies` be something else than energies."""
    model = make_tiny().double()
    regularizer = MHERegularizer(model, config_of("srip"))
    assert repr(regularizer) == "MHERegularizer(TinyClassifier: 2 hidden groups x 0.7, 1 output group x 0.3; srip)"
    assert regularizer.energies() == MHERegularizer(model, MHEConfig()).energies()
    assert "energy" not in repr(MHERegularizer(model, MHEConfig()))


@pytest.mark.parametrize("name", ["soft_orthogonality", pytest.param("comhe_random", marks=pytest.mark.slow)])
def test_trainer_minimizes_and_logs_it(name: str, tmp_path: Path) -> None:
    """A tracker would show an energy that was not minimized, or nothing of what was."""
    args = logged_arguments(tmp_path, num_train_epochs=4)
    config = config_of(name, hidden_weight=2.0, output_weight=2.0, log_groups=True)
    model = make_tiny()
    rows = {key: (value[0].detach().double(), 1.0, value[2]) for key, value in tiny_terms(model).items()}
    groups = [f"mhe_{name}/{group.name}" for group in neuron_groups(model)]
    trainer = MHETrainer(model, args, train_dataset=tiny_data(32), mhe_config=config)
    trainer.train()
    logged = records(trainer)
    first, values = logged[0], [record[f"mhe_{name}"] for record in logged]
    keys = {key for key in first if key.startswith("mhe") and not key.startswith("mhe_spread")}
    assert keys - {"mhe_gradient_ratio"} == {"mhe_loss", f"mhe_{name}", *groups}
    expected = [float(penalty(name, {group: each}, seed=args.seed)) for group, each in rows.items()]
    assert first[f"mhe_{name}"] == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert first["mhe_loss"] == pytest.approx(2 * sum(expected), rel=1e-4)
    assert [first[group] for group in groups] == pytest.approx(expected, rel=1e-4)
    assert {"mhe_spread", "loss"} <= first.keys()
    assert sum(values[-4:]) < sum(values[:4])  # each step of CoMHE has other projections
    trainer.save_model(str(tmp_path / "saved"))
    assert MHEConfig.from_pretrained(tmp_path / "saved") == config
    assert isinstance(model, TinyClassifier)


# --- a budget


@pytest.mark.parametrize("name", ["soft_orthogonality", "srip", "gram_determinant"])
def test_a_budget_draws_groups_without_bias(name: str) -> None:
    """With a budget another penalty would be minimized than without, or more be computed than it allows."""
    model = make_tiny().double()
    config = config_of(name)
    exact = MHERegularizer(model, config)
    costs = [term.operations for term in exact._exact(exact.groups)]
    allowance = 0.5 * min(costs)  # less than any group takes, so that each is drawn in some of the steps
    drawn = MHERegularizer(
        model, dataclasses.replace(config, budget=0.5), step_operations=1.5 * allowance / 0.5, seed=3
    )
    steps, spent, total = 1500, 0, 0.0
    for step in range(steps):
        terms = exact._exact(exact.groups, 0)
        assert drawn.budget is not None
        chosen = drawn.budget.draw(terms, drawn.find_engine().workload(drawn.groups), step)
        assert all(
            term.objective == terms[0].objective or term.objective in {t.objective for t in terms} for term in chosen
        )
        spent += sum(term.operations for term in chosen)
        total += sum(term.factor for term in chosen)
    reference = steps * sum(term.factor for term in exact._exact(exact.groups))
    assert spent / steps <= 1.01 * allowance
    assert total == pytest.approx(reference, rel=0.1)


def test_a_step_with_a_budget_is_that_of_the_drawn_groups() -> None:
    """A group that was not drawn would be trained, or one that was not be weighted for those that were not."""
    model = make_tiny().double()
    config = config_of("soft_orthogonality", budget=0.5)
    exact = MHERegularizer(model, config_of("soft_orthogonality"))
    terms = exact._exact(exact.groups)
    half = 1.5 * 0.5 * sum(term.operations for term in terms)
    regularizer = MHERegularizer(model, config, step_operations=half / 0.5)
    seen = set()
    for _ in range(12):
        model.zero_grad()
        penalty_now = regularizer.advance()
        if penalty_now is None:
            continue
        penalty_now.backward()
        reached = {key.split(".")[0] for key, value in model.named_parameters() if value.grad is not None}
        seen.add(frozenset(reached))
        assert reached < {"body", "middle", "classifier"}
    assert set().union(*seen) == {"body", "middle", "classifier"}

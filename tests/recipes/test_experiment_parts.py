"""What the experiments do to a model: grow it by copies, begin it elsewhere, add a term to its loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from harness.data.images import Rows, Splits, load
from harness.measures.accuracy import accuracy
from harness.models.grow import add_noise, renew, widen
from harness.models.images import build, task_loss
from harness.runs.perform import perform, plain
from harness.tasks import growing
from harness.training.penalties import RIVALS, minimal_energy_hidden, orthogonal_hidden
from harness.training.train import Recipe, train
from torch import Tensor, nn

from hf_mhe import hyperspherical_energy, neuron_groups

SHAPES: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "widths": [6, 5]},
    "conv": {"kind": "conv", "widths": [2, 3], "depth": 2, "features": 7},
    "patches": {
        "kind": "patches", "intermediate_size": 6, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 4,
    },
}  # fmt: skip
GROWS = {"mlp": "widths", "conv": "widths", "patches": "intermediate_size"}


def model(kind: str, factor: int = 1, seed: int = 0) -> Any:
    options = copy.deepcopy(SHAPES[kind])
    width = options[GROWS[kind]]
    options[GROWS[kind]] = [each * factor for each in width] if isinstance(width, list) else width * factor
    torch.manual_seed(seed)
    return build(**options, classes=10, side=8)


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def grown(kind: str, factor: int) -> tuple[Any, Any]:
    small, wide = model(kind), model(kind, factor, seed=5)
    with torch.no_grad():  # running statistics and biases that are not what they were at the start
        small.train()
        small(pixel_values=images())
        for parameter in small.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    widen(small, wide, factor)
    return small, wide


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("training", [False, True])
def test_a_model_widened_by_copies_computes_the_same(kind: str, factor: int, training: bool) -> None:
    small, wide = grown(kind, factor)
    outputs = [m.train(training)(pixel_values=images()).logits for m in (small, wide)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for units in wide.widened_layers():
        rows = wide.get_parameter(f"{units.makes}.weight").flatten(1)
        blocks = rows.unflatten(0, (-1, factor))
        assert torch.equal(blocks, blocks[:, :1].expand_as(blocks)), "the copies differ"


@pytest.mark.parametrize("kind", SHAPES)
def test_noise_is_as_long_as_it_is_said_to_be(kind: str) -> None:
    _, wide = grown(kind, 2)
    before = copy.deepcopy(wide)
    add_noise(wide, 0.3, torch.Generator().manual_seed(0))
    touched = {units.makes for units in wide.widened_layers()}
    for name, parameter in wide.named_parameters():
        old = before.get_parameter(name)
        if name.removesuffix(".weight") in touched:
            ratio = (parameter - old).flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1)
            torch.testing.assert_close(ratio, torch.full_like(ratio, 0.3))
        else:
            assert torch.equal(parameter, old)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("how", ["normal", "orthogonal"])
def test_new_units_without_outgoing_weights_keep_the_function(kind: str, how: str) -> None:
    small, wide = grown(kind, 4)
    before = wide.state_dict()[f"{wide.widened_layers()[0].makes}.weight"].clone()
    renew(wide, 4, torch.Generator().manual_seed(0), rows=how, outgoing=0.0)
    after = wide.state_dict()[f"{wide.widened_layers()[0].makes}.weight"]
    changed = (after != before).flatten(1).any(1)
    assert changed.tolist() == [index % 4 != 0 for index in range(len(changed))]
    outputs = [m.eval()(pixel_values=images()).logits for m in (small, wide)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    renew(wide, 4, torch.Generator().manual_seed(0), rows=how, outgoing=1.0)
    assert not torch.allclose(wide(pixel_values=images()).logits, outputs[0], atol=1e-3)


def test_orthogonal_units_are_orthogonal_and_as_long_as_normal_ones() -> None:
    wide = build(kind="mlp", widths=[64, 64], classes=10, side=16)  # 64 rows in 256 dimensions
    renew(wide, 64, torch.Generator().manual_seed(0), rows="orthogonal", outgoing=0.0)
    rows = wide.hidden[0].weight[1:]
    gram = (rows @ rows.t()).detach()
    torch.testing.assert_close(gram, 2.0 * torch.eye(63), atol=1e-4, rtol=0)  # Kaiming: variance 2 / fan-in


@pytest.mark.parametrize("begin", [orthogonal_hidden, lambda m: minimal_energy_hidden(m, seed=0)])
def test_another_start_has_less_energy_and_the_same_lengths(begin: Any) -> None:
    for kind in ("mlp", "conv"):
        changed = model(kind)
        before = [group.matrix().detach().clone() for group in neuron_groups(changed) if group.role == "hidden"]
        begin(changed)
        after = [group.matrix().detach() for group in neuron_groups(changed) if group.role == "hidden"]
        assert len(before) == len(after) > 1
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(new.norm(dim=1), old.norm(dim=1))
            if len(old) > 1:
                energy = [float(hyperspherical_energy(each, 1.0, space="half")) for each in (old, new)]
                assert energy[1] < energy[0]


# Terms of the loss.

PENALTIES: dict[str, dict[str, Any]] = {
    "mhe": {"name": "mhe", "s": 2.0, "space": "full", "softening": 0.1, "hidden_weight": 2.0, "output_weight": 0.0},
    "soft_orthogonality": {"name": "soft_orthogonality", "weight": 2.0},
    "srip": {"name": "srip", "weight": 2.0, "seed": 3},
    "minimal_angle": {"name": "minimal_angle", "weight": 2.0},
    "comhe_random": {"name": "comhe_random", "weight": 2.0, "dim": 40, "projections": 2, "seed": 3},
    "lengths_held": {"name": "lengths_held", "weight": 2.0, "lengths": 0.3, "energy": 1.5, "s": 2.0, "softening": 0.1},
}
ON_CLASS_VECTORS = {
    name: {**options, **({"hidden_weight": 0.0, "output_weight": 2.0} if name == "mhe" else {"role": "output"})}
    for name, options in PENALTIES.items()
}


def one_step(penalty: dict[str, Any] | None) -> Any:
    changed = model("mlp")
    rows = Rows(pixel_values=images(8), labels=torch.arange(8))
    train(changed, rows, Recipe(lr=0.01, steps=1, batch=8, momentum=0.0), seed=0, penalty=penalty)
    return changed


def formula(name: str, weight: Tensor) -> Tensor:
    if name == "mhe":
        return hyperspherical_energy(weight, 2.0, softening=0.1)
    if name == "lengths_held":
        lengths = sum((row.square().sum().sqrt() - 1) ** 2 for row in weight)
        return 0.3 * lengths + 1.5 * hyperspherical_energy(weight, 2.0, softening=0.1)
    options = {key: value for key, value in PENALTIES[name].items() if key not in ("name", "weight")}
    if "dim" in options:
        options["dim"] = min(options["dim"], weight.shape[1])
    return RIVALS[name](weight, **options)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("role", ["hidden", "output"])
@pytest.mark.parametrize("name", PENALTIES)
def test_an_arm_adds_its_penalty_once_to_the_layers_of_its_role(name: str, role: str) -> None:
    penalty = PENALTIES[name] if role == "hidden" else ON_CLASS_VECTORS[name]
    plainly, penalized, start = one_step(None), one_step(penalty), model("mlp")
    for place in ("hidden.0", "hidden.1", "classifier"):
        weight = start.get_parameter(f"{place}.weight")
        moved = (penalized.get_parameter(f"{place}.weight") - plainly.get_parameter(f"{place}.weight")) / -0.01
        wanted = torch.zeros_like(weight)
        if (place == "classifier") == (role == "output"):
            (wanted,) = torch.autograd.grad(2.0 * formula(name, weight), weight)
        torch.testing.assert_close(moved, wanted, rtol=2e-3, atol=2e-4)


def test_fewer_rows_than_a_batch_are_refused_and_not_a_training_of_no_step() -> None:
    rows = Rows(pixel_values=images(7), labels=torch.arange(7))
    with pytest.raises(ValueError, match="a batch of 8 needs as many rows; got 7"):
        train(model("mlp"), rows, Recipe(lr=0.1, steps=1, batch=8), seed=0)


@pytest.mark.recipes
def test_an_early_penalty_ends() -> None:
    rows = Rows(pixel_values=images(64), labels=torch.arange(64) % 10)
    recipe = Recipe(lr=0.01, steps=6, batch=8, schedule="constant")

    def trained(**penalty: Any) -> Any:
        changed = model("mlp")
        train(changed, rows, recipe, seed=0, penalty={**PENALTIES["mhe"], **penalty} if penalty else None)
        return changed.hidden[0].weight

    assert torch.equal(trained(until=0), trained())
    assert torch.equal(trained(until=6), trained(s=2.0))
    assert not torch.equal(trained(until=3), trained())
    assert not torch.equal(trained(until=3), trained(s=2.0))


def test_a_penalty_that_blows_up_is_an_outcome_and_a_slip_is_an_error() -> None:
    rows = Rows(pixel_values=images(64), labels=torch.arange(64) % 10)
    done = train(
        model("mlp"),
        rows,
        Recipe(lr=1e6, steps=20, batch=8),
        seed=0,
        penalty={"name": "soft_orthogonality", "weight": 1},
    )
    assert done.diverged is not None
    with pytest.raises(ValueError, match="penalty must be one of mhe"):
        train(model("mlp"), rows, Recipe(lr=0.1, steps=1, batch=8), seed=0, penalty={"name": "nothing"})


def test_the_authors_loss_is_bounded_and_the_usual_one_is_torchs() -> None:
    logits, labels = 100 * torch.randn(16, 10), torch.arange(16) % 10
    probabilities = logits.softmax(-1)
    target = 0.99 * nn.functional.one_hot(labels, 10) + 0.001
    slow = torch.stack([-(t * (p + 1e-4).log()).sum() for t, p in zip(target, probabilities, strict=True)]).mean()
    torch.testing.assert_close(task_loss(logits, labels, "authors"), slow)
    assert task_loss(logits, labels, "authors") < 9.22  # -log 1e-4
    torch.testing.assert_close(task_loss(logits, labels, "cross_entropy"), nn.functional.cross_entropy(logits, labels))


# Data and runs.


def test_validation_and_test_are_not_what_is_trained_on() -> None:
    data = load("digits", train=400, seed=0)
    everything = load("digits", train=None, seed=0)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [400, 300, 300]
    assert len(everything.train) + 600 == 1797

    def names(rows: Rows) -> set[bytes]:
        return {image.numpy().tobytes() for image in rows.columns["pixel_values"]}

    assert names(data.train) < names(everything.train)
    assert names(data.train) != names(load("digits", train=400, seed=1).train)
    assert names(data.test) == names(load("digits", train=400, seed=1).test)
    seen = [names(part) for part in (everything.train, everything.validation, everything.test)]
    assert len(set.union(*seen)) == sum(map(len, seen)), "an image is in two parts"
    with pytest.raises(ValueError, match="has 1197 training rows"):
        load("digits", train=5000, seed=0)


def test_accuracy_is_the_share_that_is_right() -> None:
    data: Splits = load("digits", train=None, seed=0)
    guesser = build(kind="mlp", widths=[4], classes=10, side=8)
    logits = guesser(pixel_values=data.test.columns["pixel_values"]).logits
    right = sum(int(row.argmax() == label) for row, label in zip(logits, data.test.columns["labels"], strict=True))
    assert accuracy(guesser, data.test, batch=77) == pytest.approx(100 * right / 300)


def quick_run(seed: int = 100, stage: str = "final") -> Any:
    from harness.plan.experiment import find, make_run

    experiment = find("growing_mlp")
    arm = experiment.arm("noise")
    return make_run(experiment, arm, {}, arm.trials()[0], stage, seed, quick=True)


@pytest.mark.recipes
def test_a_run_is_the_same_alone_and_after_another() -> None:
    growing._base.cache_clear()
    alone = perform(quick_run())["result"]
    growing._base.cache_clear()
    perform(quick_run(101))
    after = perform(quick_run())["result"]
    for timed in (alone, after):
        for name in ("train_seconds", "train_cpu_seconds"):
            timed.pop(name)
        timed["base"].pop("train_seconds")
        for each in timed["log"]:
            each.pop("train_runtime", None)
    assert after == alone


@pytest.mark.slow
def test_a_tuning_run_does_not_read_the_test_set() -> None:
    assert perform(quick_run(stage="tune"))["result"]["test"] is None
    assert perform(quick_run())["result"]["test"] is not None


def test_a_record_is_json_whatever_it_measured() -> None:
    assert plain({"a": (float("nan"), float("inf"), 1 / 3), "b": {"c": None, "d": True}}) == {
        "a": [None, None, 0.333333], "b": {"c": None, "d": True},
    }  # fmt: skip

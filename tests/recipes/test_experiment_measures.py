"""What the experiments measure on a trained model: verification, damage, confidence; and the margin of SphereFace."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from harness.data.images import load
from harness.measures.confidence import calibration_error, confidence
from harness.measures.damage import Damage, damaged, noisy, pruned, quantized
from harness.measures.ranking import accepted, auroc
from harness.models.angular import AngularConfig, AngularForVerification, annealed, psi
from harness.models.images import build
from harness.tasks.verifying import parts, rotated, verified
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor


def scores(seed: int = 0, ties: bool = False) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(40, generator=draw) + 1, torch.randn(300, generator=draw)
    return tuple(each.round() for each in found) if ties else found  # type: ignore[return-value]


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_under_the_curve_is_scikit_learns(ties: bool) -> None:
    higher, lower = scores(ties=ties)
    labels = [1] * len(higher) + [0] * len(lower)
    assert auroc(higher, lower) == pytest.approx(100 * roc_auc_score(labels, torch.cat([higher, lower])))
    with pytest.raises(ValueError, match="both kinds"):
        auroc(higher, lower[:0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_acceptance_is_the_highest_point_of_the_curve_within_the_share(ties: bool, share: float) -> None:
    higher, lower = scores(ties=ties)
    labels = [1] * len(higher) + [0] * len(lower)
    false, true, _ = roc_curve(labels, torch.cat([higher, lower]), drop_intermediate=False)
    assert accepted(higher, lower, share) == pytest.approx(100 * max(true[false <= share + 1e-9]))
    with pytest.raises(ValueError, match="less than one"):
        accepted(higher, lower, 0.001)


# The margin.


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_the_margin_falls_from_1_to_the_end_of_the_half_circle_as_the_paper_says(margin: int) -> None:
    angles = torch.linspace(0.001, math.pi - 0.001, 500, dtype=torch.float64)
    k = (angles * margin / math.pi).floor()
    expected = (-1) ** k * (margin * angles).cos() - 2 * k
    torch.testing.assert_close(psi(angles.cos(), margin), expected, atol=1e-9, rtol=0)
    assert (expected.diff() < 0).all()
    ends = psi(torch.tensor([1.0, -1.0], requires_grad=True), margin)
    torch.testing.assert_close(ends, torch.tensor([1.0, 1.0 - 2 * margin]))
    at_one = torch.ones(1, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(psi(at_one, margin).sum(), at_one)[0]).all()


def test_the_annealing_is_that_of_the_authors_12000_steps() -> None:
    for step in (0, 100, 1000, 1809, 12_000):
        assert annealed(step / 12_000) == pytest.approx(max(5.0, 1000 / (1 + 0.11 * step)), rel=0.01)


def angular(margin: int, **options: Any) -> AngularForVerification:
    torch.manual_seed(0)
    config = AngularConfig(widths=[2, 3], depth=1, features=5, side=8, margin=margin, num_labels=6, **options)
    return AngularForVerification(config)


def test_a_margin_of_one_is_the_softmax_over_normalised_class_vectors_and_more_is_harder() -> None:
    images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 6
    model = angular(1).eval()
    x, w = model.embed(images), model.classifier.weight
    logits = torch.stack([torch.stack([row @ each / each.norm() for each in w]) for row in x])
    found = model(pixel_values=images, labels=labels)
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(logits, labels))
    with torch.no_grad():
        model.classifier.weight *= torch.rand(6, 1) + 0.5
    torch.testing.assert_close(model(pixel_values=images).logits, logits, msg="the length of a class vector counted")
    losses = [angular(m).eval()(pixel_values=images, labels=labels).loss.item() for m in (1, 2, 3, 4)]
    assert losses == sorted(losses)
    with pytest.raises(ValueError, match="margin must be one of 1, 2, 3, 4"):
        angular(5)


def test_the_margin_comes_in_with_the_steps_of_training_and_not_with_looks() -> None:
    images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 6
    model = angular(4, steps=10)
    for _ in range(3):
        model.eval()(pixel_values=images, labels=labels)
    assert int(model.seen) == 0
    for _ in range(3):
        model.train()(pixel_values=images, labels=labels)
    assert int(model.seen) == 3


# Open-set verification.

SETTINGS = {"data": {"name": "digits", "train": 400, "side": 8}, "garments": [6, 2, 2]}


def classes(images: Tensor) -> set[int]:
    """The classes of scikit-learn's digits that these images, in whatever rotation, show."""
    whole = load("digits", train=None, seed=0)
    known = {}
    for part in (whole.train, whole.validation, whole.test):
        for image, label in zip(part.columns["pixel_values"], part.columns["labels"], strict=True):
            known[image.numpy().tobytes()] = int(label)
    found = set()
    for image in images:
        turned = [image.rot90(turn, (1, 2)).contiguous().numpy().tobytes() for turn in range(4)]
        found |= {known[each] for each in turned if each in known}
    return found


def test_what_is_verified_was_not_trained_on() -> None:
    seen, familiar, unseen, test = parts(SETTINGS, seed=3)
    shown = [classes(part.columns["pixel_values"]) for part in (seen, familiar, unseen, test)]
    assert [len(each) for each in shown] == [6, 6, 2, 2]
    assert shown[0] == shown[1]
    assert not shown[0] & shown[2]
    assert not shown[0] & shown[3]
    assert not shown[2] & shown[3], "settings are chosen on the classes of the test"
    assert len(seen) == 400
    assert set(seen.columns["labels"].tolist()) == set(range(24))
    again = parts(SETTINGS, seed=3)
    assert all(
        torch.equal(a.columns["labels"], b.columns["labels"]) for a, b in zip((seen, test), again[::3], strict=True)
    )


def test_a_class_is_a_garment_in_a_rotation() -> None:
    rows = load("digits", train=None, seed=0).test
    turned = rotated(rows, torch.tensor([7, 2]), torch.Generator().manual_seed(0))
    kept = [i for i, label in enumerate(rows.columns["labels"].tolist()) if label in (7, 2)]
    assert len(turned) == len(kept)
    for place, index in enumerate(kept):
        label = int(turned.columns["labels"][place])
        assert label // 4 == [7, 2].index(int(rows.columns["labels"][index]))
        wanted = rows.columns["pixel_values"][index].rot90(label % 4, (1, 2))
        assert torch.equal(turned.columns["pixel_values"][place], wanted)


def test_verification_is_over_all_pairs_and_of_the_model_as_it_is() -> None:
    *_, test = parts(SETTINGS, seed=0)
    model = angular(1).train()
    tar, auc = verified(model, test)
    assert model.training
    unit = torch.nn.functional.normalize(model.eval().embed(test.columns["pixel_values"]), dim=1).detach()
    labels, values = [], []
    for i in range(len(test)):
        for j in range(i):
            labels.append(int(test.columns["labels"][i] == test.columns["labels"][j]))
            values.append(float(unit[i] @ unit[j]))
    assert auc == pytest.approx(100 * roc_auc_score(labels, values), abs=0.01)
    false, true, _ = roc_curve(labels, values, drop_intermediate=False)
    assert tar == pytest.approx(100 * max(true[false <= 0.01]), abs=0.2)
    with torch.no_grad():
        model.features.weight.fill_(math.nan)
    assert verified(model, test) == (0.0, 50.0)


# Damage.

ROWS = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_pruning_takes_the_smallest(share: float) -> None:
    left = pruned(share)(ROWS)
    gone = left == 0
    assert int(gone.sum()) == round(share * ROWS.numel())
    assert torch.equal(left[~gone], ROWS[~gone])
    if 0 < share < 1:
        assert ROWS[gone].abs().max() <= ROWS[~gone].abs().min()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_row_of_few_bits_has_few_values_near_its_own(bits: int) -> None:
    rows = torch.cat([ROWS, 1e-3 * ROWS, torch.zeros(1, 33)])
    found = quantized(bits)(rows)
    for row, old in zip(found, rows, strict=True):
        assert len(set(row.tolist())) <= 2**bits - 1
        step = float(old.abs().max()) / (2 ** (bits - 1) - 1)
        assert float((row - old).abs().max()) <= step / 2 * 1.0001
        assert float(row.abs().max()) == pytest.approx(float(old.abs().max()))


def test_noise_is_as_large_as_its_row_says() -> None:
    rows = torch.randn(3, 20_000) * torch.tensor([[1.0], [0.1], [10.0]])
    moved = noisy(0.3, torch.Generator().manual_seed(0))(rows) - rows
    torch.testing.assert_close(moved.std(1) / rows.square().mean(1).sqrt(), torch.full((3,), 0.3), atol=0.01, rtol=0)


@pytest.mark.parametrize("damage", [pruned(0.5), quantized(3), noisy(0.1, torch.Generator())])
@pytest.mark.parametrize("kind", [{"kind": "mlp", "widths": [6, 5]}, {"kind": "conv", "widths": [2, 3]}])
def test_every_layer_is_damaged_and_then_as_it_was(damage: Damage, kind: dict[str, Any]) -> None:
    model = build(**copy.deepcopy(kind), classes=10, side=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with damaged(model, damage):
        for name, parameter in model.named_parameters():
            layer = parameter.dim() > 1
            assert torch.equal(parameter, before[name]) != layer, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Confidence.


def test_the_calibration_error_is_the_loop_over_the_bins() -> None:
    logits, labels = 2 * torch.randn(500, 10), torch.randint(10, (500,))
    sure, right = confidence(logits), logits.argmax(1) == labels
    total = 0.0
    for number in range(15):
        inside = (sure > number / 15) & (sure <= (number + 1) / 15)
        if inside.any():
            total += int(inside.sum()) * abs(float(sure[inside].mean()) - float(right[inside].float().mean()))
    assert calibration_error(logits, labels) == pytest.approx(100 * total / 500, abs=1e-3)


def test_who_is_right_as_often_as_sure_has_no_calibration_error() -> None:
    certain = torch.full((4, 2), -200.0).scatter(1, torch.tensor([[0], [1], [0], [1]]), 200.0)
    assert calibration_error(certain, torch.tensor([0, 1, 0, 1])) == 0
    assert calibration_error(certain, torch.tensor([1, 0, 1, 0])) == 100
    assert calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) == pytest.approx(0, abs=1e-5)

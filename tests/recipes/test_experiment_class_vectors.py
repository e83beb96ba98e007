"""Class vectors under strain: losses for rare classes, how classes are thinned out, vectors that are fixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness.data.images import Rows
from harness.models import class_vectors
from harness.models.images import build
from harness.tasks import classifying
from harness.training.tail import LOSSES, effective_number, tail_loss
from harness.training.train import Recipe, train
from torch import nn

COUNTS = torch.tensor([5.0, 50.0, 500.0, 5000.0])


def test_logit_adjustment_is_the_loss_of_the_priors_times_tau() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    plain = nn.functional.cross_entropy(logits, labels)
    assert torch.equal(tail_loss(logits, labels, COUNTS, "cross_entropy"), plain)
    assert torch.equal(tail_loss(logits, labels, COUNTS, "logit_adjustment", tau=0.0), plain)
    scaled = logits.exp() * (COUNTS / COUNTS.sum()) ** 1.5  # softmax over pi^tau exp(f)
    expected = -(scaled / scaled.sum(1, keepdim=True)).log()[range(6), labels].mean()
    torch.testing.assert_close(tail_loss(logits, labels, COUNTS, "logit_adjustment", tau=1.5), expected)


def test_a_class_weighs_by_the_inverse_of_its_effective_number() -> None:
    by_sum = torch.tensor([sum(0.99**i for i in range(int(n))) for n in COUNTS])  # 1 + beta + ... + beta^(n - 1)
    torch.testing.assert_close(effective_number(COUNTS, 0.99), by_sum, rtol=1e-4, atol=0)
    assert torch.equal(effective_number(COUNTS, 1.0), COUNTS)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    weights = 1 / COUNTS[labels]
    expected = (each * weights).sum() / weights.sum()
    torch.testing.assert_close(tail_loss(logits, labels, COUNTS, "class_balanced"), expected)


def test_a_loss_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=", ".join(LOSSES) + "; got 'focal'"):
        tail_loss(torch.zeros(1, 4), torch.tensor([0]), COUNTS, "focal")
    with pytest.raises(ValueError, match="smoothed with loss cross_entropy only; got 'logit_adjustment'"):
        classifying.StrainedConfig(loss="logit_adjustment", smoothing=0.1)


@pytest.mark.parametrize("rotations", [1, 4])
@pytest.mark.parametrize("imbalance", [1, 5, 20])
def test_classes_fall_in_number_to_the_share_that_is_said(rotations: int, imbalance: int) -> None:
    settings = {"data": {"name": "digits", "train": None, "side": 8}, "rotations": rotations, "imbalance": imbalance}
    data, again, other = (classifying.strained(settings, seed) for seed in (0, 0, 1))
    assert data.classes == 10 * rotations
    counts = [part.train.columns["labels"].bincount(minlength=data.classes) for part in (data, other)]
    assert torch.equal(again.train.columns["labels"], data.train.columns["labels"])
    if imbalance == 1:
        assert len(data.train) == 1197
        return
    for count in counts:
        assert count.min() >= 1
        assert count.max() / count.min() == pytest.approx(imbalance, rel=0.5)
        down = count.sort(descending=True).values
        expected = down[0] * imbalance ** (-torch.arange(data.classes) / (data.classes - 1))
        assert (down - expected).abs().max() <= 1, "rounded, and no class is empty"
    assert not torch.equal(counts[0].argsort(), counts[1].argsort()), "the same classes are rare in every seed"
    assert len(data.test) == 300  # nothing is thinned out where a model is judged


def test_fixed_vectors_of_least_energy_are_a_simplex_where_there_is_room() -> None:
    vectors = class_vectors.vectors(True, 10, 16, seed=0).float()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(10))
    cosines = vectors @ vectors.t()
    torch.testing.assert_close(cosines, torch.eye(10) - (1 - torch.eye(10)) / 9, atol=1e-4, rtol=0)


def test_a_softmax_sees_orthonormal_vectors_as_those_of_least_energy() -> None:
    """Why they are no rival of these: less their mean they have the same cosines, and it moves no probability."""
    vectors = class_vectors.vectors("orthonormal", 10, 16, seed=0)
    torch.testing.assert_close(vectors @ vectors.t(), torch.eye(10), atol=1e-5, rtol=0)
    centred = vectors - vectors.mean(0)
    unit = nn.functional.normalize(centred, dim=1)
    torch.testing.assert_close(unit @ unit.t(), torch.eye(10) - (1 - torch.eye(10)) / 9, atol=1e-5, rtol=0)
    features = torch.randn(6, 16)
    torch.testing.assert_close((features @ vectors.t()).softmax(1), (features @ centred.t()).softmax(1))


def test_fixed_vectors_that_there_are_none_of_are_refused() -> None:
    random = class_vectors.vectors("random", 10, 4, seed=3)
    assert torch.equal(random, class_vectors.vectors("random", 10, 4, seed=3))
    torch.testing.assert_close(random.norm(dim=1), torch.ones(10))
    for kind, features in (("orthonormal", 9), ("simplex", 16)):
        with pytest.raises(ValueError, match=f"no fixed vectors '{kind}' of 10 classes in {features} dimensions"):
            class_vectors.vectors(kind, 10, features, seed=0)


@pytest.mark.parametrize("kind", [False, True, "random", "orthonormal"])
def test_vectors_that_are_fixed_stay_where_they_are(kind: bool | str) -> None:
    torch.manual_seed(0)
    model: Any = build(kind="conv", classes=10, side=8, widths=[2, 3], depth=1, features=12)
    drawn = model.classifier.weight.detach().clone()
    class_vectors.fix(model, kind, seed=1)
    start = model.classifier.weight.detach().clone()
    assert torch.equal(start, drawn) is (kind is False)
    rows = Rows(pixel_values=torch.randn(32, 1, 8, 8), labels=torch.arange(32) % 10)
    bias = model.classifier.bias.detach().clone()
    train(model, rows, Recipe(lr=0.1, steps=2, batch=16, weight_decay=0.1), seed=0)
    assert torch.equal(model.classifier.weight, start) is (kind is not False)
    assert not torch.equal(model.classifier.bias, bias), "the rest is trained"

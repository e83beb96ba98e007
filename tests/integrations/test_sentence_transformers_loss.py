"""The energy of sentence embeddings beside the losses of sentence-transformers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_mhe import EnergyLoss, MHEError
from hf_mhe.integrations.sentence_transformers import EnergyRegularizedLoss
from tests.integrations.sentences import ANCHORS, POSITIVES, make_model

pytestmark = pytest.mark.integrations

sentence_transformers = pytest.importorskip("sentence_transformers")

WEIGHT = 0.7
NEGATIVES = ["Nothing of the kind.", "Two plus two is four.", "A red car."] * 3


@functools.cache
def losses() -> Any:
    from sentence_transformers.sentence_transformer import losses

    return losses


@pytest.fixture(scope="module")
def small() -> Any:
    return make_model()


def features(model: Any, *columns: list[str]) -> list[dict[str, Any]]:
    return [model.preprocess(column) for column in columns]


CLASSES = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
TENSION = CLASSES % 2
SCORES = torch.linspace(0, 1, 8, dtype=torch.float64)
PAIR = (ANCHORS, POSITIVES)
TRIPLET = (*PAIR, NEGATIVES[:8])
DIMS = [32, 16, 8]

# Name: the loss of a model, the columns, the labels, whose pairs of one value do not count.
Case = tuple[Callable[[Any], Any], tuple[list[str], ...], Any]
CASES: dict[str, Case] = {
    "ranking": (lambda m: losses().MultipleNegativesRankingLoss(m), PAIR, None),
    "ranking with negatives": (lambda m: losses().MultipleNegativesRankingLoss(m), TRIPLET, None),
    "cached ranking": (lambda m: losses().CachedMultipleNegativesRankingLoss(m, mini_batch_size=3), TRIPLET, None),
    "cached symmetric": (
        lambda m: losses().CachedMultipleNegativesSymmetricRankingLoss(m, mini_batch_size=3),
        PAIR,
        None,
    ),
    "guided": (lambda m: losses().GISTEmbedLoss(m, copy_of(m)), PAIR, None),
    "cached guided": (lambda m: losses().CachedGISTEmbedLoss(m, copy_of(m), mini_batch_size=3), PAIR, None),
    "mega batch": (lambda m: losses().MegaBatchMarginLoss(m, mini_batch_size=3), PAIR, None),
    "mega batch, whole": (lambda m: losses().MegaBatchMarginLoss(m, use_mini_batched_version=False), PAIR, None),
    "scores": (lambda m: losses().CoSENTLoss(m), PAIR, SCORES),
    "yes or no": (lambda m: losses().ContrastiveLoss(m), PAIR, CLASSES % 2),
    "triplets": (lambda m: losses().TripletLoss(m), TRIPLET, None),
    "classes": (lambda m: losses().BatchHardSoftMarginTripletLoss(m), (ANCHORS,), CLASSES),
    "classifier": (lambda m: losses().SoftmaxLoss(m, 32, 3), PAIR, CLASSES),
    "teacher": (lambda m: losses().MSELoss(m), (ANCHORS,), torch.randn(8, 32)),
    "parts": (lambda m: losses().GlobalOrthogonalRegularizationLoss(m), PAIR, None),
    "tension": (lambda m: losses().ContrastiveTensionLoss(m), PAIR, TENSION),
    "matryoshka": (
        lambda m: losses().MatryoshkaLoss(m, losses().MultipleNegativesRankingLoss(m), DIMS),
        TRIPLET,
        None,
    ),
    "matryoshka without the whole": (
        lambda m: losses().MatryoshkaLoss(m, losses().MultipleNegativesRankingLoss(m), DIMS[1:]),
        PAIR,
        None,
    ),
    "cached matryoshka": (
        lambda m: losses().MatryoshkaLoss(m, losses().CachedMultipleNegativesRankingLoss(m, mini_batch_size=3), DIMS),
        PAIR,
        None,
    ),
    "layers": (
        lambda m: losses().AdaptiveLayerLoss(m, losses().MultipleNegativesRankingLoss(m), n_layers_per_step=-1),
        TRIPLET,
        None,
    ),
    "layers and dimensions": (
        lambda m: losses().Matryoshka2dLoss(m, losses().CoSENTLoss(m), DIMS, n_layers_per_step=-1, n_dims_per_step=-1),
        PAIR,
        SCORES,
    ),
}


def copy_of(model: Any) -> Any:
    import copy

    guide = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.01 * torch.ones_like(parameter))
    return guide


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def total(parts: Any) -> Tensor:
    """As the trainer adds up what a loss returns."""
    return torch.stack(list(parts.values())).sum() if isinstance(parts, dict) else parts


def energy_of(model: Any, columns: tuple[list[str], ...], labels: Any) -> Tensor:
    """The energy of the embeddings by a forward pass of its own; texts of one example, or one class, do not count."""
    embedded = columns[1:] if labels is TENSION else columns  # its other column is embedded by a model of its own
    rows = torch.cat([model(each)["sentence_embedding"] for each in features(model, *embedded)])
    one_class_each = len(columns) == 1 and labels is CLASSES
    return EnergyLoss()(rows, CLASSES if one_class_each else torch.arange(len(rows)) % len(ANCHORS))


@pytest.mark.parametrize("name", CASES)
def test_every_loss_gets_the_gradient_of_the_energy(name: str, small: Any) -> None:
    """A loss would train without the energy, or on that of embeddings that are not the model's."""
    make, columns, labels = CASES[name]
    torch.manual_seed(0)
    bare = make(small).double()
    columns_of = functools.partial(features, small, *columns)
    base = total(bare(columns_of(), labels))
    expected = gradients(small, base)
    energy = energy_of(small, columns, labels)
    for parameter, gradient in gradients(small, WEIGHT * energy).items():
        expected[parameter] = expected.get(parameter, torch.zeros_like(gradient)) + gradient

    runs: list[int] = []
    hook = small[0].register_forward_hook(lambda *_: runs.append(1))
    bare(columns_of(), labels)
    alone, before = len(runs), vars(small).get("forward")
    parts = EnergyRegularizedLoss(bare, WEIGHT)(columns_of(), labels)
    assert len(runs) == 2 * alone  # not one forward pass more
    hook.remove()
    assert vars(small).get("forward") is before
    assert parts["energy_loss"].item() == pytest.approx(WEIGHT * energy.item(), rel=1e-9)
    assert total(parts).item() == pytest.approx(base.item() + WEIGHT * energy.item(), rel=1e-9)
    assert isinstance(bare(columns_of(), labels), dict) or set(parts) == {"base_loss", "energy_loss"}
    found = gradients(small, total(parts))
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        assert (found[parameter] - gradient).abs().max().item() <= 1e-8 * max(1.0, gradient.abs().max().item()), (
            parameter
        )
    with torch.no_grad():
        value = EnergyRegularizedLoss(bare, WEIGHT)(columns_of(), labels)
    assert value["energy_loss"].item() == pytest.approx(WEIGHT * energy.item(), rel=1e-9)


def test_the_cached_form_has_the_gradient_of_the_plain_one(small: Any) -> None:
    """Larger batches, for which the cache is there, would be trained on another loss."""
    found = []
    for name, scale in (("ranking with negatives", 0.125), ("cached ranking", 0.125)):
        make, columns, _ = CASES[name]
        parts = EnergyRegularizedLoss(make(small), WEIGHT)(features(small, *columns))
        found.append(gradients(small, scale * total(parts)))  # as accumulation and a gradient scaler multiply it
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).abs().max().item() < 1e-10


def test_a_weight_of_zero_is_the_loss_alone(small: Any) -> None:
    """A sweep over the weight could not contain the baseline."""
    make, columns, _ = CASES["ranking"]
    bare = make(small)
    alone = EnergyRegularizedLoss(bare, 0)(features(small, *columns))
    assert torch.equal(alone, bare(features(small, *columns), None))


def test_what_is_refused(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip would end in an error of another library, or in a training on something else."""
    make, columns, _ = CASES["ranking"]
    inner = EnergyRegularizedLoss(make(small))
    for outer in (
        losses().MatryoshkaLoss(small, inner, DIMS),
        losses().AdaptiveLayerLoss(small, inner),
        losses().MatryoshkaLoss(small, EnergyRegularizedLoss(CASES["cached ranking"][0](small)), DIMS),
    ):
        with pytest.raises(MHEError, match="must be outermost"):
            outer(features(small, *columns), None)
    with pytest.raises(MHEError, match=r"loss must be a loss of sentence-transformers.*; got Linear"):
        EnergyRegularizedLoss(torch.nn.Linear(2, 2))
    with pytest.raises(MHEError, match="weight must be a finite number >= 0; got -1"):
        EnergyRegularizedLoss(make(small), -1)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    named = r"EnergyRegularizedLoss needs sentence-transformers, .*: pip install 'hf-mhe\[integrations\]'"
    with pytest.raises(MHEError, match=named):
        EnergyRegularizedLoss(make(small))

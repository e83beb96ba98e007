"""What a trained classifier endures: damage to its weights, and inputs of another kind."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from harness.data.images import Rows, digits, load
from harness.measures.accuracy import accuracy, logits
from harness.measures.confidence import calibration_error, confidence
from harness.measures.damage import Damage, damaged, noisy, pruned, quantized
from harness.measures.energies import energies, of_training
from harness.measures.ranking import auroc
from harness.models.images import build
from harness.training.train import Recipe, train

_CURVE_ROWS = 1000


def run(settings: Mapping[str, Any], seed: int, final: bool) -> dict[str, Any]:
    """One run.

    Args:
        settings: `data`, `model`, `recipe`, `penalty`, and `damages`: `pruned` (shares), `bits`, `noise` (sizes) and
            `draws` of the noise.
        seed: draws the training rows, the weights, the batches and the noise.
        final: whether the test set is read.

    Returns:
        Beside the figures, for the test set: `kept`, the mean over all damages of what is left of the accuracy, in
        percent of the undamaged one; the accuracy after each damage; `ece`; and `ood_rotated` and `ood_digits`, by
        which probability a test image has a higher confidence than one of another kind.
    """
    data = load(**settings["data"], seed=seed)
    set_seed(seed)
    model = build(**settings["model"], classes=data.classes, side=settings["data"]["side"])
    before = energies(model)
    few = data.validation.first(_CURVE_ROWS)
    recipe = Recipe(**settings["recipe"])
    trained = train(
        model,
        data.train,
        recipe,
        seed=seed,
        penalty=settings["penalty"],
        watch=lambda m: {"validation": accuracy(m, few)},
        watch_every=max(1, recipe.steps // 8),
    )
    return {
        "parameters": model.num_parameters(),
        **of_training(trained, model, before),
        "validation": accuracy(model, data.validation),
        "test": None,
        **(_tested(model, data.test, settings["damages"], seed) if final else {}),
    }


def _tested(model: PreTrainedModel, rows: Rows, damages: Mapping[str, Any], seed: int) -> dict[str, Any]:
    found, labels = logits(model, rows), rows.columns["labels"]
    clean = 100 * float((found.argmax(-1) == labels).double().mean())
    after = {name: _accuracy(model, rows, ways) for name, ways in _ways(damages, seed).items()}
    side = rows.columns["pixel_values"].shape[-1]
    return {
        "test": clean,
        "kept": 100 * statistics.fmean(after.values()) / clean,
        **after,
        "ece": calibration_error(found, labels),
        "ood_rotated": _told_apart(model, found, rows.columns["pixel_values"].rot90(1, (2, 3))),
        "ood_digits": _told_apart(model, found, _digits(side)),
    }


def _ways(damages: Mapping[str, Any], seed: int) -> dict[str, list[Damage]]:
    """By name: one damage, or one for each draw of the noise; every arm of a seed gets the same."""
    draws = torch.Generator().manual_seed(seed)
    return {
        **{f"pruned_{100 * share:g}": [pruned(share)] for share in damages["pruned"]},
        **{f"bits_{bits}": [quantized(bits)] for bits in damages["bits"]},
        **{f"noise_{size:g}": [noisy(size, draws) for _ in range(damages["draws"])] for size in damages["noise"]},
    }


def _accuracy(model: PreTrainedModel, rows: Rows, ways: list[Damage]) -> float:
    found = []
    for damage in ways:
        with damaged(model, damage):
            found.append(accuracy(model, rows))
    return statistics.fmean(found)


def _told_apart(model: PreTrainedModel, inside: Tensor, pixels: Tensor) -> float:
    strange = logits(model, Rows(pixel_values=pixels))
    return auroc(confidence(inside), confidence(strange))


def _digits(side: int) -> Tensor:
    """scikit-learn's digits at the size that the model takes."""
    pixels = digits(8).test.columns["pixel_values"]
    return torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear")

"""Training from scratch on images: does it start at all, and how far does it come?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from harness.data.images import load
from harness.measures.accuracy import accuracy
from harness.measures.energies import energies, of_training
from harness.models.images import build
from harness.training.penalties import minimal_energy_hidden, orthogonal_hidden
from harness.training.train import Recipe, train

_CURVE_ROWS = 1000
STARTED = 2.0  # times the accuracy of guessing: above it a training has begun to learn


def run(settings: Mapping[str, Any], seed: int, final: bool) -> dict[str, Any]:
    """One run.

    Args:
        settings: `data`, `model`, `recipe` (with `steps`), `start` ("given", "orthogonal" or "minimal_energy"),
            `penalty`, and `penalty_share`: in which first share of the steps there is a penalty, 1 for all.
        seed: draws the training rows, the weights and the batches.
        final: whether the test set is read.

    Returns:
        Beside the figures: `stalled`, whether the training never came above twice the accuracy of guessing, and
        `started_at`, the first point of the curve that did.
    """
    data = load(**settings["data"], seed=seed)
    set_seed(seed)
    model = build(**settings["model"], classes=data.classes, side=settings["data"]["side"])
    begin(model, settings["start"], seed)
    model.to(memory_format=torch.channels_last)  # the same numbers but for rounding, a quarter sooner on a CPU
    before = energies(model)
    few = data.validation.first(_CURVE_ROWS)
    recipe = Recipe(**settings["recipe"])
    trained = train(
        model,
        data.train,
        recipe,
        seed=seed,
        penalty=_in_the_first(settings["penalty"], settings.get("penalty_share", 1), recipe.steps),
        watch=lambda m: {"validation": accuracy(m, few)},
        watch_every=max(1, recipe.steps // 24),
    )
    started = [point["step"] for point in trained.curve if point["validation"] > STARTED * 100 / data.classes]
    return {
        "parameters": model.num_parameters(),
        **of_training(trained, model, before),
        "stalled": not started,
        "started_at": started[0] if started else None,
        "validation": accuracy(model, data.validation),
        "test": accuracy(model, data.test) if final else None,
    }


def begin(model: PreTrainedModel, how: str, seed: int) -> None:
    """The directions that the hidden layers begin with.

    Raises:
        ValueError: there is no such start.
    """
    if how == "orthogonal":
        orthogonal_hidden(model)
    elif how == "minimal_energy":
        minimal_energy_hidden(model, seed=seed)
    elif how != "given":
        raise ValueError(f"start must be given, orthogonal or minimal_energy; got {how!r}")


def _in_the_first(penalty: Mapping[str, Any] | None, share: float, steps: int) -> Mapping[str, Any] | None:
    """The penalty with a last step, for `harness.penalties.trainer_class`."""
    if penalty is None or share == 1:
        return penalty
    return {**penalty, "until": round(share * steps)}

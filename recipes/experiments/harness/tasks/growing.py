"""Growing by copies: a small model is trained, widened so that it computes the same, and trained on."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from harness.data.images import Splits, load
from harness.measures.accuracy import accuracy
from harness.measures.energies import energies, of_training
from harness.models import grow, mixture
from harness.models.images import build
from harness.training.train import Recipe, Trained, train

_CURVE_ROWS = 2000  # of the validation data, for the curves: the choice of settings uses all of it
_EXPERTS = "mixture"  # the kind of model that grows by experts, and not by units


def run(settings: Mapping[str, Any], seed: int, final: bool) -> dict[str, Any]:
    """One run: the base model, its growth as the arm says, the training that follows.

    Args:
        settings: `data`, `model`, `factor`, `base` and `grown` (recipes, in epochs), `start` (what is done to the
            copies: "copied", "noise", "renewed" or "scratch", with its options) and `penalty`.
        seed: draws the training rows, the weights and the batches.
        final: whether the test set is read.
    """
    data = load(**settings["data"], seed=seed)
    set_seed(seed + 1_000_000)
    wide = build(**_model(settings, data, settings["factor"]))
    base: dict[str, Any] | None = None
    if settings["start"]["how"] != "scratch":
        small, base = _base(json.dumps([settings["data"], settings["model"], settings["base"]], sort_keys=True), seed)
        _begin(wide, small, settings, torch.Generator().manual_seed(seed))
    before = energies(wide)
    trained = _train(wide, data, settings["grown"], seed, settings.get("penalty"))
    return {
        "base": base,
        "parameters": wide.num_parameters(),
        "steps": _recipe(settings["grown"], data).steps,
        **of_training(trained, wide, before),
        "validation": accuracy(wide, data.validation),
        "test": accuracy(wide, data.test) if final else None,
        **({"experts_cosine": mixture.cosine(wide)} if settings["model"]["kind"] == _EXPERTS else {}),
    }


def _begin(
    wide: PreTrainedModel, small: PreTrainedModel, settings: Mapping[str, Any], generator: torch.Generator
) -> None:
    """The copies, and what is done to them before the training goes on.

    Raises:
        ValueError: there is no such start.
    """
    ways: Any = mixture if settings["model"]["kind"] == _EXPERTS else grow
    ways.widen(small, wide, settings["factor"])
    options = dict(settings["start"])
    how = options.pop("how")
    if how == "noise":
        ways.add_noise(wide, options["size"], generator)
    elif how == "renewed":
        ways.renew(wide, settings["factor"], generator, **options)
    elif how != "copied":
        raise ValueError(f"start must be copied, noise, renewed or scratch; got {how!r}")


@functools.lru_cache(maxsize=4)
def _base(described: str, seed: int) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The trained small model of a seed, which all arms of the seed grow from."""
    data_settings, model, recipe = json.loads(described)
    data = load(**data_settings, seed=seed)
    set_seed(seed)
    small = build(**_model({"model": model, "data": data_settings}, data, 1))
    trained = _train(small, data, recipe, seed, None)
    measured = {"validation": accuracy(small, data.validation), "train_seconds": trained.seconds}
    return small.cpu(), {**measured, "parameters": small.num_parameters(), "diverged": trained.diverged}


def _train(
    model: PreTrainedModel, data: Splits, recipe: Mapping[str, Any], seed: int, penalty: Mapping[str, Any] | None
) -> Trained:
    few = data.validation.first(_CURVE_ROWS)
    made = _recipe(recipe, data)
    return train(
        model,
        data.train,
        made,
        seed=seed,
        penalty=penalty,
        watch=lambda m: {"validation": accuracy(m, few)},
        watch_every=max(1, made.steps // 8),
    )


def _recipe(recipe: Mapping[str, Any], data: Splits) -> Recipe:
    """A recipe whose length is in `epochs` (a fraction is allowed) or, for a look, in `steps`."""
    options = dict(recipe)
    epochs, batch = options.pop("epochs", None), options.get("batch", Recipe.batch)
    if epochs is not None:
        options["steps"] = round(epochs * (len(data.train) // batch))
    return Recipe(**options)


def _model(settings: Mapping[str, Any], data: Splits, factor: int) -> dict[str, Any]:
    options = dict(settings["model"])
    width = options.pop("widened")  # the option that grows, a number or a list of them
    wide = options[width]
    options[width] = [each * factor for each in wide] if isinstance(wide, list) else wide * factor
    return {**options, "classes": data.classes, "side": settings["data"].get("side", 28)}

"""How strong should the penalty be? One training of a given part: a data set, a model and where it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, set_seed

from harness.data.images import Rows, Splits, load
from harness.measures.accuracy import accuracy, balanced
from harness.measures.energies import energies, of_training
from harness.models import characters
from harness.models.images import build
from harness.plan.experiment import ExperimentError
from harness.statistics import rule
from harness.training.penalties import orthogonal_hidden
from harness.training.train import Recipe, train

_CURVE_ROWS = 1000
Score = Callable[[PreTrainedModel, Rows], float]


def run(settings: Mapping[str, Any], seed: int, final: bool) -> dict[str, Any]:
    """One run; the figures are accuracies, for names the mean over the languages.

    Args:
        settings: `part` (`kind` "images" or "names", `data`, `model`, `recipe`; for names `from`, and `base`, the
            recipe of what it comes from), `rate` (times the part's learning rate), `penalty`, and with `by_ratio` the
            `ratio` of the gradients that the penalty's weight is to give at step 64; with `start` "orthogonal" the
            hidden neurons keep their lengths and get other directions.
        seed: draws the training rows, the weights and the batches.
        final: whether the test set is read.
    """
    part, penalty = settings["part"], settings["penalty"]
    data, score = _data(part, seed)
    recipe = Recipe(**part["recipe"])
    recipe = replace(recipe, lr=settings["rate"] * recipe.lr)
    probed = None
    if settings["by_ratio"]:
        if settings["ratio"] is None:
            raise ExperimentError(
                f"the rule's ratio comes from {rule.CURVES}, whose runs are not all there: run it first"
            )
        probed = _probe(part, data, recipe, penalty, seed)
        penalty = {**penalty, "hidden_weight": rule.weight_for(settings["ratio"], probed["ratio"])}
    model, base = _begin(part, data, seed)
    if settings.get("start") == "orthogonal":
        orthogonal_hidden(model)
    before = energies(model)
    few = data.validation.first(_CURVE_ROWS)
    trained = train(
        model,
        data.train,
        recipe,
        seed=seed,
        penalty=penalty,
        watch=lambda m: {"validation": accuracy(m, few)},
        watch_every=rule.STEP,
    )
    return {
        "base": base,
        "probed": probed,
        "weight": None if penalty is None else penalty.get("hidden_weight", penalty.get("weight")),
        "parameters": model.num_parameters(only_trainable=True),
        **of_training(trained, model, before),
        "validation": score(model, data.validation),
        "test": score(model, data.test) if final else None,
    }


def _data(part: Mapping[str, Any], seed: int) -> tuple[Splits, Score]:
    if part["kind"] == "images":
        return load(**part["data"], seed=seed), accuracy
    _, whole = characters.halves(part["data"]["languages"])
    data = replace(whole, train=characters.drawn(whole.train, part["data"]["train"], seed))
    return data, lambda model, rows: balanced(model, rows, data.classes)[0]


def _begin(part: Mapping[str, Any], data: Splits, seed: int) -> tuple[PreTrainedModel, dict[str, Any] | None]:
    if part["kind"] == "names":
        return characters.begun(part, data, seed)
    set_seed(seed)
    return build(**part["model"], classes=data.classes, side=part["data"]["side"]), None


def _probe(
    part: Mapping[str, Any], data: Splits, recipe: Recipe, penalty: Mapping[str, Any], seed: int
) -> dict[str, float]:
    """The first 64 steps with a weight that hardly acts, and the ratio of the gradients at their end."""
    model, _ = _begin(part, data, seed)
    steps = min(rule.STEP, recipe.steps)
    weak = {**penalty, "hidden_weight": rule.PROBE}
    trained = train(model, data.train, recipe, seed=seed, penalty=weak, watch_every=steps, stop=steps)
    return {"step": steps, "ratio": trained.log[-1]["mhe_gradient_ratio"], "seconds": trained.seconds}

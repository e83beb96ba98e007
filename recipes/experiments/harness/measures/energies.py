"""Energies of a model before and after, as `hf_mhe.analyze` reads them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from harness.training.train import Trained
from hf_mhe import GroupEnergy, analyze

_KEPT = ("name", "role", "n", "d", "spread", "energy", "score", "max_cosine", "near_duplicates", "coincident", "dead")


def of_training(trained: Trained, model: PreTrainedModel, before: dict[str, Any]) -> dict[str, Any]:
    """What every task records of its training, and the model's energies before and after."""
    return {
        "train_seconds": trained.seconds,
        "train_cpu_seconds": trained.cpu_seconds,
        "diverged": trained.diverged,
        "log": trained.log,
        "curve": trained.curve,
        "energies": {"before": before, "after": energies(model) if trained.diverged is None else None},
    }


def energies(model: PreTrainedModel) -> dict[str, Any]:
    """The summary of the hidden groups and the rows of all: spreads, scores, near-duplicates, dimensions."""
    report = analyze(model)
    hidden = [group for group in report.competing if group.role == "hidden"]
    scores = [score for group in hidden if (score := _score(group)) is not None]
    spreads = [group.spread for group in hidden if group.spread is not None]
    crowding = sum(1 / spread for spread in spreads)
    return {
        "mean_spread": len(spreads) / crowding if crowding else None,
        "mean_score": sum(scores) / len(scores) if scores else None,
        "near_duplicates": sum(group.near_duplicates for group in hidden),
        "coincident": sum(group.coincident for group in hidden),
        "groups": [
            {key: row[key] for key in (*_KEPT, "equivalent_dimension") if key in row}
            for row in (group.to_dict() for group in report.groups)
        ],
    }


def _score(group: GroupEnergy) -> float | None:
    """The score of the pairs that do not coincide; with those that do it is infinite, and says nothing of the rest."""
    if not group.coincident:
        return group.score
    span = group.expected - group.lower_bound
    return (group.energy - group.lower_bound) / span if 0 < span < float("inf") else None

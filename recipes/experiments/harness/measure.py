"""Energies of a model before and after, as `hf_mhe.analyze` reads them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from hf_mhe import analyze

_KEPT = ("name", "role", "n", "d", "energy", "score", "max_cosine", "near_duplicates", "coincident", "dead")


def energies(model: PreTrainedModel) -> dict[str, Any]:
    """The summary of the hidden groups and the rows of all: scores, near-duplicates and, where known, dimensions."""
    report = analyze(model).to_dict()
    groups = [{key: row[key] for key in (*_KEPT, "equivalent_dimension") if key in row} for row in report["groups"]]
    hidden = [row for row in groups if row["role"] == "hidden"]
    scores = [row["score"] for row in hidden if row["score"] is not None]
    return {
        "mean_score": sum(scores) / len(scores) if scores else None,
        "near_duplicates": sum(row["near_duplicates"] for row in hidden),
        "coincident": sum(row["coincident"] for row in hidden),
        "groups": groups,
    }

"""Shares of rows that a model classifies right, over all of them or class by class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.data.images import Rows, Splits


def accuracy(model: PreTrainedModel, rows: Rows, batch: int = 500) -> float:
    """Share of rows, in percent, whose largest logit is the label's; the model is left in the mode it had."""
    labels = rows.columns["labels"]
    return 100 * int((logits(model, rows, batch).argmax(-1) == labels).sum()) / len(rows)


def balanced(
    model: PreTrainedModel, rows: Rows, classes: int, rare: Tensor | None = None, batch: int = 2000
) -> tuple[float, float]:
    """Mean over the classes of the share that is right, in percent; and the same over the rare ones (NaN of none)."""
    labels = rows.columns["labels"]
    hit = (logits(model, rows, batch).argmax(-1) == labels).float()
    right = torch.zeros(classes).index_add_(0, labels, hit)
    shares = 100 * right / torch.bincount(labels, minlength=classes)
    return float(shares.mean()), float((shares[rare] if rare is not None else shares[:0]).mean())


def by_class(model: PreTrainedModel, data: Splits, rare: Tensor | None, final: bool) -> dict[str, Any]:
    """`validation` and, if it is final, `test`, as `balanced` has them; with `_rare`, over the rare classes."""
    found: dict[str, Any] = {}
    for part, rows in (("validation", data.validation), ("test", data.test if final else None)):
        over_all, over_rare = (None, None) if rows is None else balanced(model, rows, data.classes, rare)
        found |= {part: over_all, f"{part}_rare": None if rare is None else over_rare}
    return found


@torch.no_grad()
def logits(model: PreTrainedModel, rows: Rows, batch: int = 500) -> Tensor:
    """The logits of all rows, on the CPU; the model is left in the mode it had."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found = []
    for part in rows.batches(batch):
        inputs = {name: column.to(device) for name, column in part.items() if name != "labels"}
        found.append(model(**inputs).logits.cpu())
    model.train(was_training)
    return torch.cat(found)

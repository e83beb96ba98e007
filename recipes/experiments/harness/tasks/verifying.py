"""Open-set verification: do two images show the same class, of classes that were not trained on?

A class is a garment in one of four rotations. The seed draws which garments are trained on, which are for choosing
settings and which for the test; each of the three parts has images of its own, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from harness.data.images import Rows, load
from harness.measures.accuracy import accuracy
from harness.measures.energies import energies, of_training
from harness.measures.ranking import accepted, auroc
from harness.models import class_vectors
from harness.models.angular import AngularConfig, AngularForVerification
from harness.training.train import Recipe, train

FAR = 0.01
ROTATIONS = 4
Parts = tuple[Rows, Rows, Rows, Rows]


def run(settings: Mapping[str, Any], seed: int, final: bool) -> dict[str, Any]:
    """One run; `validation` and `test` are TAR at FAR 1e-2 in percent, on classes that were not trained on.

    Args:
        settings: `data`, `garments` (how many are trained on, for choosing, and for the test), `model`, `recipe`,
            `prototypes` (class vectors of least energy that are not trained) and `penalty`.
        seed: draws garments, images, rotations, weights and batches.
        final: whether the test set is read.
    """
    seen, familiar, unseen, test = parts(settings, seed)
    classes = settings["garments"][0] * ROTATIONS
    recipe = Recipe(**settings["recipe"])
    set_seed(seed)
    side = settings["data"]["side"]
    model = AngularForVerification(
        AngularConfig(**settings["model"], side=side, steps=recipe.steps, num_labels=classes)
    )
    class_vectors.fix(model, settings["prototypes"], seed)
    before = energies(model)
    trained = train(
        model,
        seen,
        recipe,
        seed=seed,
        penalty=settings["penalty"],
        watch=lambda m: {"validation": verified(m, unseen)[0]},
        watch_every=max(1, recipe.steps // 3),
    )
    tar, auc = verified(model, unseen)
    test_tar, test_auc = verified(model, test) if final else (None, None)
    return {
        "parameters": model.num_parameters(),
        **of_training(trained, model, before),
        "familiar": accuracy(model, familiar),
        "validation": tar,
        "validation_auc": auc,
        "test": test_tar,
        "test_auc": test_auc,
    }


def parts(settings: Mapping[str, Any], seed: int) -> Parts:
    """Rows to train on, validation rows of their classes, and rows of unseen ones, for choosing and for the test."""
    generator = torch.Generator().manual_seed(seed)
    data = load(**{**settings["data"], "train": None}, seed=seed)
    groups = torch.randperm(data.classes, generator=generator).split(settings["garments"])
    seen = rotated(data.train, groups[0], generator)
    drawn = torch.randperm(len(seen), generator=generator)[: settings["data"]["train"]]
    validation = [rotated(data.validation, group, generator) for group in groups[:2]]
    return Rows(**seen.at(drawn)), *validation, rotated(data.test, groups[2], generator)


def rotated(rows: Rows, garments: Tensor, generator: torch.Generator) -> Rows:
    """The images of these garments, each in one of four rotations that is drawn; labels count from 0."""
    labels = rows.columns["labels"]
    place = torch.full((int(labels.max()) + 1,), -1)
    place[garments] = torch.arange(len(garments))
    kept = rows.at((place[labels] >= 0).nonzero().squeeze(1))
    turns = torch.randint(ROTATIONS, (len(kept["labels"]),), generator=generator)
    images = kept["pixel_values"].clone()
    for turn in range(1, ROTATIONS):
        images[turns == turn] = images[turns == turn].rot90(turn, (2, 3))
    return Rows(pixel_values=images, labels=place[kept["labels"]] * ROTATIONS + turns)


@torch.no_grad()
def verified(model: AngularForVerification, rows: Rows) -> tuple[float, float]:
    """TAR at FAR 1e-2, and AUC, in percent, of the cosine of the embeddings over all pairs of rows.

    With embeddings that are not finite, of a training that diverged, nothing is verified: 0 and 50.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    found = torch.cat([model.embed(batch["pixel_values"].to(device)) for batch in rows.batches(500)]).cpu()
    model.train(was_training)
    if not torch.isfinite(found).all():
        return 0.0, 50.0
    unit = torch.nn.functional.normalize(found, dim=1)
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    scores = (unit @ unit.t())[first, second]
    same = rows.columns["labels"][first] == rows.columns["labels"][second]
    return accepted(scores[same], scores[~same], FAR), auroc(scores[same], scores[~same])

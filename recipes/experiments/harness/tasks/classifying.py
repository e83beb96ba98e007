"""Class vectors under strain: more classes than there are dimensions to hold them, or classes of which some are rare.

A class is a garment of Fashion-MNIST, or a garment in one of four rotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from harness.data.images import Rows, Splits, load
from harness.measures.accuracy import balanced, by_class
from harness.measures.energies import energies, of_training
from harness.models import class_vectors
from harness.models.images import ConvConfig, ConvForImageClassification
from harness.tasks.verifying import ROTATIONS, rotated
from harness.training.tail import tail_loss
from harness.training.train import Recipe, train

_CURVE_ROWS = 2000


class StrainedConfig(ConvConfig):
    """`normalised`: class vectors of length one, as in SphereFace; features keep their length.

    `smoothing`: of the labels, with the plain cross-entropy; `loss`, `tau` and `beta` as `harness.tail` has them.
    """

    model_type = "experiment_strained"

    def __init__(
        self,
        normalised: bool = False,
        smoothing: float = 0.0,
        tau: float = 1.0,
        beta: float = 1.0,
        counts: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.normalised, self.smoothing, self.tau, self.beta = normalised, smoothing, tau, beta
        self.counts = counts or []
        super().__init__(**kwargs)
        if smoothing and self.loss != "cross_entropy":
            raise ValueError(f"labels are smoothed with loss cross_entropy only; got {self.loss!r}")


class StrainedForImageClassification(ConvForImageClassification):
    """Convolutions, few features that no activation follows, and class vectors."""

    config_class = StrainedConfig

    def __init__(self, config: StrainedConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.features, config.num_labels, bias=not config.normalised)
        counts = torch.tensor(config.counts or [1] * config.num_labels, dtype=torch.float32)
        self.register_buffer("counts", counts, persistent=False)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        x, config = self.embed(pixel_values), self.config
        if config.normalised:
            logits = x @ nn.functional.normalize(self.classifier.weight, dim=1).t()
        else:
            logits = self.classifier(x)
        loss = None
        if labels is not None and config.smoothing:
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=config.smoothing)
        elif labels is not None:
            loss = tail_loss(logits, labels, self.counts, config.loss, tau=config.tau, beta=config.beta)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def run(settings: Mapping[str, Any], seed: int, final: bool) -> dict[str, Any]:
    """One run; the figures are balanced accuracies in percent, and `rare` that of the rarer half of the classes.

    Args:
        settings: `data`, `rotations` (1 or 4), `imbalance` (how many times the most frequent class has the rows of
            the rarest one), `model`, `recipe`, `prototypes` (`kind` of `class_vectors.fix`) and `penalty`.
        seed: draws images, rotations, which classes are rare, weights and batches.
        final: whether the test set is read.
    """
    data = strained(settings, seed)
    counts = torch.bincount(data.train.columns["labels"], minlength=data.classes)
    set_seed(seed)
    config = StrainedConfig(
        **settings["model"], side=settings["data"]["side"], counts=counts.tolist(), num_labels=data.classes
    )
    model = StrainedForImageClassification(config)
    class_vectors.fix(model, settings["prototypes"], seed)
    before, few = energies(model), data.validation.first(_CURVE_ROWS)
    recipe = Recipe(**settings["recipe"])
    trained = train(
        model,
        data.train,
        recipe,
        seed=seed,
        penalty=settings["penalty"],
        watch=lambda m: {"validation": balanced(m, few, data.classes)[0]},
        watch_every=max(1, recipe.steps // 3),
    )
    rare = counts.argsort()[: data.classes // 2] if settings["imbalance"] != 1 else None
    return {
        "parameters": model.num_parameters(),
        **of_training(trained, model, before),
        **by_class(model, data, rare, final),
    }


def strained(settings: Mapping[str, Any], seed: int) -> Splits:
    """The data of a seed: `train` rows of all that there are, turned, and thinned out class by class."""
    generator = torch.Generator().manual_seed(seed)
    data = load(**settings["data"], seed=seed)
    parts, classes = [data.train, data.validation, data.test], data.classes
    if settings["rotations"] != 1:
        parts = [rotated(part, torch.arange(data.classes), generator) for part in parts]
        classes *= ROTATIONS
    parts[0] = thinned(parts[0], classes, settings["imbalance"], generator)
    return Splits(*parts, classes=classes)


def thinned(rows: Rows, classes: int, imbalance: float, generator: torch.Generator) -> Rows:
    """Rows whose classes fall geometrically in number, the last to 1 / `imbalance` of the first, in a drawn order.

    The profile is that of Cao et al., NeurIPS 2019 (arXiv:1906.07413). No class has more than the smallest one had.
    """
    if imbalance == 1:
        return rows
    labels = rows.columns["labels"]
    most = int(torch.bincount(labels, minlength=classes).min())
    order = torch.randperm(classes, generator=generator)
    kept = []
    for rank, label in enumerate(order.tolist()):
        where = (labels == label).nonzero().squeeze(1)
        kept.append(where[: max(1, round(most * imbalance ** (-rank / (classes - 1))))])
    return Rows(**rows.at(torch.cat(kept).sort().values))

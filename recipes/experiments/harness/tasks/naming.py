"""Many classes with a long tail: which language a name is in, from hashed n-grams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from harness.data.names import BUCKETS, language_names
from harness.measures.accuracy import balanced, by_class
from harness.measures.energies import energies, of_training
from harness.models import class_vectors
from harness.training.tail import tail_loss
from harness.training.train import Recipe, train

RARE = 60  # training strings under which a language is rare
SCALE = 16.0  # of the logits of a normalised classifier


class NamesConfig(PretrainedConfig):
    """`head`: "plain" or "normalised"; `loss`, `tau` and `beta` as `harness.tail` has them."""

    model_type = "experiment_names"

    def __init__(
        self,
        dim: int = 32,
        head: str = "plain",
        loss: str = "cross_entropy",
        tau: float = 1.0,
        beta: float = 1.0,
        prototypes: bool = False,
        counts: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.dim, self.head, self.loss, self.prototypes = dim, head, loss, prototypes
        self.tau, self.beta = tau, beta
        self.counts = counts or []
        super().__init__(**kwargs)


class NamesForSequenceClassification(PreTrainedModel):
    """Mean of n-gram vectors, one hidden layer, class vectors."""

    config_class = NamesConfig
    base_model_prefix = "body"
    main_input_name = "ngrams"

    def __init__(self, config: NamesConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.EmbeddingBag(BUCKETS, config.dim, mode="mean", padding_idx=0)
        self.hidden = nn.Linear(config.dim, config.dim)
        self.classifier = nn.Linear(config.dim, config.num_labels, bias=config.head == "plain")
        counts = torch.tensor(config.counts or [1] * config.num_labels, dtype=torch.float32)
        self.register_buffer("counts", counts, persistent=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.EmbeddingBag)):
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ngrams: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        x = self.hidden(self.embeddings(ngrams)).relu()
        if self.config.head == "normalised":
            unit = nn.functional.normalize(self.classifier.weight, dim=1)
            logits = SCALE * nn.functional.normalize(x, dim=1) @ unit.t()
        else:
            logits = self.classifier(x)
        config, loss = self.config, None
        if labels is not None:
            loss = tail_loss(logits, labels, self.counts, config.loss, tau=config.tau, beta=config.beta)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def run(settings: Mapping[str, Any], seed: int, final: bool) -> dict[str, Any]:
    """One run; the figures are balanced accuracies, means over the languages, and `rare` that of the rare ones."""
    data = language_names(settings["data"]["languages"])
    counts = torch.bincount(data.train.columns["labels"], minlength=data.classes)
    set_seed(seed)
    config = NamesConfig(**settings["model"], counts=counts.tolist(), num_labels=data.classes)
    model = NamesForSequenceClassification(config)
    class_vectors.fix(model, config.prototypes, seed)
    before = energies(model)
    recipe = Recipe(**settings["recipe"])
    trained = train(
        model,
        data.train,
        recipe,
        seed=seed,
        penalty=settings["penalty"],
        watch=lambda m: {"validation": balanced(m, data.validation, data.classes)[0]},
        watch_every=max(1, recipe.steps // 6),
    )
    return {
        "parameters": model.num_parameters(),
        **of_training(trained, model, before),
        **by_class(model, data, counts < RARE, final),
    }

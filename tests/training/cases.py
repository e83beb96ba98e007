"""Small models that train, their data, and the penalty by a slow formula of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_mhe import MHEConfig
from tests import oracle

FEATURES, CLASSES, VOCABULARY, LENGTH = 6, 3, 29, 5
LEARNING_RATE, HIDDEN, OUTPUT = 0.5, 0.7, 0.3
CONFIG = MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT)


class TinyConfig(PretrainedConfig):
    model_type = "tiny-classifier"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"num_labels": CLASSES, **kwargs})


class TinyClassifier(PreTrainedModel):
    """A classifier whose forward takes no keyword arguments, so that Trainer divides its loss by the accumulation."""

    config_class = TinyConfig
    base_model_prefix = "body"

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.body = nn.Linear(FEATURES, 9)
        self.middle = nn.Linear(9, 7)
        self.classifier = nn.Linear(7, CLASSES)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> None:
        """There are none: accelerate asks before it shards."""

    get_output_embeddings = get_input_embeddings

    def forward(self, features: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        hidden = torch.tanh(self.middle(torch.tanh(self.body(features.to(self.dtype)))))
        logits = self.classifier(hidden)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def make_tiny(seed: int = 0) -> TinyClassifier:
    torch.manual_seed(seed)
    return TinyClassifier(TinyConfig())


def make_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=8,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def make_bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config)


class PlainModel(nn.Module):
    """A model of no library's: its output is a dict, and its head is an output layer only if the config says so."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, 9)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.body(features.to(self.body.weight.dtype))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def make_plain(seed: int = 0) -> PlainModel:
    torch.manual_seed(seed)
    return PlainModel()


def tiny_data(count: int, seed: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, FEATURES, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return [{"features": row, "labels": int(label)} for row, label in zip(features, labels, strict=True)]


def gpt2_data(count: int, seed: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in tokens]


def bert_data(count: int, seed: int = 1) -> list[dict[str, Any]]:
    return [
        {"input_ids": row["input_ids"], "labels": index % CLASSES} for index, row in enumerate(gpt2_data(count, seed))
    ]


slow_energy = functools.partial(oracle.slow_energy, tangent_above=0.95)
"""The energy as the default config has it: pairs above a cosine of 0.95 count by the tangent there."""


def slow_penalty(terms: Iterable[tuple[Tensor, float, str]], s: float = 2.0) -> Tensor:
    """`sum of weight * mean energy` over (rows, weight, space)."""
    return torch.stack([weight * slow_energy(rows, s, space=space) for rows, weight, space in terms]).sum()


def dense_penalty(terms: Iterable[tuple[Tensor, float, str]], s: float = 2.0) -> Tensor:
    """The same by all distances at once, for s > 0: less slow, where there are many terms."""
    total = torch.zeros((), dtype=torch.float64)
    for rows, weight, space in terms:
        points = nn.functional.normalize(rows.double(), dim=1)
        points = torch.cat((points, -points)) if space == "half" else points
        rho, edge = nn.functional.pdist(points), 0.1**0.5
        tangent = edge**-s + 0.5 * s * edge ** (-s - 2) * (0.1 - rho.square())
        total = total + weight * torch.where(rho < edge, tangent, rho.clamp(min=edge).pow(-s)).mean()
    return total


def tiny_terms(model: TinyClassifier, hidden: float, output: float) -> list[tuple[Tensor, float, str]]:
    return [
        (model.body.weight, hidden, "half"),
        (model.middle.weight, hidden, "half"),
        (model.classifier.weight, output, "full"),
    ]


def gpt2_terms(model: GPT2LMHeadModel, hidden: float, output: float) -> list[tuple[Tensor, float, str]]:
    """Conv1D of transformers stores (d, n), q, k, v side by side; the tied embedding and head have weight 0."""
    matrices: list[Tensor] = []
    for block in model.transformer.h:
        matrices += block.attn.c_attn.weight.chunk(3, dim=1)
        matrices += [layer.weight for layer in (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)]
    return [(matrix.T, hidden, "half") for matrix in matrices]


def bert_terms(model: BertForSequenceClassification, hidden: float, output: float) -> list[tuple[Tensor, float, str]]:
    layers: list[Any] = [model.bert.pooler.dense]
    for block in model.bert.encoder.layer:
        attention = block.attention
        layers += [attention.self.query, attention.self.key, attention.self.value, attention.output.dense]
        layers += [block.intermediate.dense, block.output.dense]
    return [*((layer.weight, hidden, "half") for layer in layers), (model.classifier.weight, output, "full")]


def plain_terms(model: PlainModel, hidden: float, output: float) -> list[tuple[Tensor, float, str]]:
    return [(model.body.weight, hidden, "half"), (model.head.weight, output, "full")]


@functools.cache
def starting_gradient(name: str, hidden: float, output: float) -> dict[str, Tensor]:
    """The gradient of the slow formula at a case's initial weights, float64."""
    case = ALL_CASES[name]
    return case.penalty_gradient(case.make().double(), hidden, output)


class Case:
    """One kind of model: how it is made, its data, and its penalty by the slow formula."""

    def __init__(self, name: str, make: Callable[..., Any], data: Callable[..., Any], terms: Callable[..., Any]):
        self.name, self.make, self.data, self.terms = name, make, data, terms

    def penalty_gradient(self, model: nn.Module, hidden: float, output: float) -> dict[str, Tensor]:
        """The gradient of the slow formula at the model's weights, float64, zero where it does not reach."""
        parameters = dict(model.named_parameters())
        penalty = slow_penalty(self.terms(model, hidden, output))
        gradients = torch.autograd.grad(penalty, list(parameters.values()), allow_unused=True)
        return {
            name: torch.zeros_like(parameter, dtype=torch.float64) if gradient is None else gradient.double()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }


CASES = {
    "tiny": Case("tiny", make_tiny, tiny_data, tiny_terms),  # Trainer divides its loss by the accumulation steps
    "gpt2": Case("gpt2", make_gpt2, gpt2_data, gpt2_terms),  # takes num_items_in_batch: Trainer does not divide
}

ALL_CASES = {
    **CASES,
    # takes **kwargs, so that Trainer does not divide, but its loss ignores num_items_in_batch
    "bert": Case("bert", make_bert, bert_data, bert_terms),
    "plain": Case("plain", make_plain, tiny_data, plain_terms),
}


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The norm of the difference over the norm of what is expected, over all parameters together."""
    difference = math.sqrt(sum(float((found[k].double() - expected[k].double()).square().sum()) for k in expected))
    return difference / math.sqrt(sum(float(expected[k].double().square().sum()) for k in expected))

"""Names as characters, read by a small BERT: from scratch, or fine-tuned from other languages, in full or by LoRA."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, set_seed

from harness.data.images import Rows, Splits
from harness.data.names import CHARACTERS, SHORT, language_names
from harness.measures.accuracy import balanced
from harness.training.train import Recipe, train

ADAPTED = ["query", "key", "value", "dense"]


def halves(languages: int | None) -> tuple[Splits, Splits]:
    """Every second language to begin from, and the others to fine-tune on."""
    first, second = (language_names(languages, "characters", half) for half in (0, 1))
    return first, second


def fresh(model: Mapping[str, Any], classes: int) -> PreTrainedModel:
    """A BERT of characters with the sizes that `model` gives, without dropout."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=CHARACTERS,
            max_position_embeddings=SHORT,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=classes,
            **model,
        )
    )


def begun(part: Mapping[str, Any], data: Splits, seed: int) -> tuple[PreTrainedModel, dict[str, Any] | None]:
    """The model that a part of an experiment trains, and what is said of the one that it comes from, if from any.

    Raises:
        ValueError: `part["from"]` is none of "scratch", "base" and "lora".
    """
    if part["from"] == "scratch":
        set_seed(seed)
        return fresh(part["model"], data.classes), None
    if part["from"] not in ("base", "lora"):
        raise ValueError(f"from must be scratch, base or lora; got {part['from']!r}")
    described = {name: part[name] for name in ("data", "model", "base", "base_penalty") if name in part}
    weights, said = _base(json.dumps(described, sort_keys=True), seed)
    set_seed(seed + 1_000_000)
    model = fresh(part["model"], data.classes)
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    model.load_state_dict({**model.state_dict(), **own})
    return (_adapted(model, part["rank"]) if part["from"] == "lora" else model), said


def _adapted(model: PreTrainedModel, rank: int) -> Any:
    import peft

    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules=ADAPTED, exclude_modules=["pooler.dense"]
    )
    return peft.get_peft_model(model, config)


@functools.lru_cache(maxsize=2)
def _base(described: str, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights of a model trained on the first half of the languages, which all arms of a seed begin with."""
    part = json.loads(described)
    data, _ = halves(part["data"]["languages"])
    set_seed(seed)
    model: nn.Module = fresh(part["model"], data.classes)
    trained = train(model, data.train, Recipe(**part["base"]), seed=seed, penalty=part.get("base_penalty"))
    figure, _ = balanced(model, data.validation, data.classes)
    said = {"validation": figure, "train_seconds": trained.seconds, "diverged": trained.diverged}
    return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, said


def drawn(rows: Rows, count: int | None, seed: int) -> Rows:
    """`count` of the rows, or all."""
    if count is None or count >= len(rows):
        return rows
    return Rows(**rows.at(torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]))

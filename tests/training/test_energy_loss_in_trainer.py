"""The energy of outputs as a term of Trainer's `compute_loss_func`, as the README has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_mhe import EnergyLoss

WEIGHT, RATE, COUNT = 3.0, 0.1, 8


def make() -> Any:
    torch.manual_seed(0)
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(
        **options, vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, output_hidden_states=True
    )
    return BertForSequenceClassification(config).double()


def data() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 50, (COUNT, 6), generator=generator)
    return [{"input_ids": row, "labels": index % 2} for index, row in enumerate(tokens)]


def pooled(outputs: Any) -> Tensor:
    return outputs.hidden_states[-1][:, 0]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_has_the_gradient_of_the_mean_over_micro_batches(accumulation: int, tmp_path: Path) -> None:
    """The weight of the energy would depend on how a batch is divided into micro-batches."""
    energy = EnergyLoss()

    def task_and_energy(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        share = len(labels) / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        task = torch.nn.functional.cross_entropy(outputs.logits, labels)
        return share * (task + WEIGHT * energy(pooled(outputs)))

    size = COUNT // accumulation
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0.0,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        train_sampling_strategy="sequential",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = make()
    Trainer(model, args, train_dataset=data(), compute_loss_func=task_and_energy).train()  # type: ignore[arg-type]

    expected = make()
    tokens = torch.stack([row["input_ids"] for row in data()])
    labels = torch.tensor([row["labels"] for row in data()])
    for rows, classes in zip(tokens.split(size), labels.split(size), strict=True):
        outputs = expected(input_ids=rows, attention_mask=torch.ones_like(rows))
        task = torch.nn.functional.cross_entropy(outputs.logits, classes)
        ((task + WEIGHT * energy(pooled(outputs))) / accumulation).backward()
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        if other.grad is not None:
            assert (parameter - (other - RATE * other.grad)).abs().max().item() < 1e-12, name

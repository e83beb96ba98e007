"""Two optimizer steps of Trainer on two processes whose batches hold different numbers of tokens that count.

torchrun --standalone --nproc_per_node 2 -m tests.training.across_devices OUTPUT.pt
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hf_mhe import MHETrainer
from tests.training.cases import ALL_CASES, LENGTH, gpt2_data
from tests.training.trainers import arguments, config_of, difference, summed_loss, train

PER_DEVICE, ACCUMULATION = 2, 3

OPTIONS: dict[str, dict[str, Any]] = {
    "averaged": {"average_tokens_across_devices": True},
    "each its own": {"average_tokens_across_devices": False},
    "averaged, label smoothing": {"average_tokens_across_devices": True, "label_smoothing_factor": 0.1},
    "averaged, compute_loss_func": {"average_tokens_across_devices": True},
    "every second": {"average_tokens_across_devices": True},
}


def masked_data(count: int) -> list[dict[str, Any]]:
    """Rows of which the first labels do not count, more of them in some rows than in others."""
    rows = gpt2_data(count)
    for index, row in enumerate(rows):
        row["labels"][: index % (LENGTH - 1)] = -100
    return rows


def contribution(name: str, options: str, resting: int) -> dict[str, Tensor]:
    """What the penalty did to the parameters in the last of `resting` + 1 optimizer steps, which alone moves them."""
    case = ALL_CASES[name]
    models = case.make().double(), case.make().double()
    # 30 rows: on two processes by twos, the first accumulation is of three micro-batches and the last of two or more
    data = masked_data(30) if name == "gpt2" else case.data(30)
    keywords: dict[str, Any] = {"compute_loss_func": summed_loss} if "compute_loss_func" in options else {}
    config = config_of(name, every_n_steps=2 if options == "every second" else 1)
    with tempfile.TemporaryDirectory() as folder:
        for model, mhe in zip(models, ({}, {"mhe_config": config}), strict=True):
            args = arguments(
                Path(folder),
                per_device_train_batch_size=PER_DEVICE,
                gradient_accumulation_steps=ACCUMULATION,
                max_steps=resting + 1,
                **OPTIONS[options],
            )
            train(
                MHETrainer if mhe else Trainer,
                model,
                args,
                train_dataset=data,
                steps_at_rest=resting,
                **keywords,
                **mhe,
            )
    return difference(*models)


if __name__ == "__main__":
    results = {
        (name, options, resting): contribution(name, options, resting)
        for name in ("gpt2", "bert", "tiny")
        for options in OPTIONS
        for resting in (1, 2)
    }
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])

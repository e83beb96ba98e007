"""Models of transformers under their own tensor parallel plan, in processes on CPU.

torchrun --standalone --nproc_per_node 2 -m tests.engines.tp_worker OUTPUT.pt FOLDER
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig

from hf_mhe import MHEConfig, MHERegularizer
from hf_mhe.training.engines import plan
from tests.engines.launch import leave_processes
from tests.training.worker import whole

STEPS, VOCABULARY = 3, 40
CONFIG = MHEConfig(hidden_weight=0.7, output_weight=0.3, embedding_weight=0.5)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),  # gate and up packed in one weight
}


def run(folder: Path, penalty: bool, **loading: Any) -> dict[str, Tensor]:
    """Whole parameters after three steps of SGD from the weights in the folder, float64."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager", **loading
    )
    assert bool(loading) == any(isinstance(parameter, DTensor) for parameter in model.parameters())
    across = ["heads", "experts"] if folder.name == "mixtral" else ["heads"]
    regularizer = MHERegularizer(model, dataclasses.replace(CONFIG, across=across))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    model.train()
    for step in range(STEPS):
        tokens = torch.randint(VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=tokens, labels=tokens).loss
        (regularizer(loss) if penalty else loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(model)


def save(root: Path) -> None:
    """Each model's initial weights, in a folder of its name."""
    for kind, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / kind)


def results(root: Path, penalty: bool = True, **loading: Any) -> dict[str, dict[str, Tensor]]:
    """What `run` gives for each model."""
    return {kind: run(root / kind, penalty, **loading) for kind in CONFIGS}


if __name__ == "__main__":
    plan.OPERATIONS_PER_BYTE = 0  # or layers as small as these would never be walked by rows
    torch.distributed.init_process_group("gloo")
    found = results(Path(sys.argv[2]), tp_plan="auto")
    if int(os.environ["RANK"]) == 0:
        torch.save(found, sys.argv[1])
    leave_processes()

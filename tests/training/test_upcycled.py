"""Mixtures of experts that begin as copies of one: with their energy they become several."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from hf_mhe import MHEConfig, MHETrainer
from tests.training.trainers import arguments, records


def upcycled(same_tokens: bool) -> Any:
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=4 if same_tokens else 2,
            use_cache=False,
            experts_implementation="eager",
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            for stack in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                stack.copy_(stack[:1].expand_as(stack).clone())
            if same_tokens:
                layer.mlp.gate.weight.zero_()
                layer.mlp.gate.weight.requires_grad_(False)
    return model


def text(rows: int = 400) -> list[dict[str, Tensor]]:
    """Of each token one of three follow."""
    generator = torch.Generator().manual_seed(1)
    after = torch.randint(64, (64, 3), generator=generator)
    tokens = torch.randint(64, (rows, 1), generator=generator)
    for _ in range(15):
        chosen = torch.randint(3, (rows,), generator=generator)
        tokens = torch.cat([tokens, after[tokens[:, -1], chosen][:, None]], 1)
    return [{"input_ids": row, "labels": row} for row in tokens]


def cosines(model: Any) -> Tensor:
    """Of the flattened experts of each layer, all pairs."""
    found = []
    for layer in model.model.layers:
        own = layer.mlp.experts
        flat = torch.cat([own.gate_up_proj.flatten(1), own.down_proj.flatten(1)], 1).detach().double()
        unit = nn.functional.normalize(flat, dim=1)
        found += [float(unit[a] @ unit[b]) for a, b in itertools.combinations(range(len(unit)), 2)]
    return torch.tensor(found)


def trained(folder: Path, model: Any, across: str | None) -> MHETrainer:
    args = arguments(
        folder,
        max_steps=50,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        logging_strategy="steps",
        logging_steps=10,
    )
    config = MHEConfig(across=across, hidden_weight=0.0, output_weight=0.0, across_weight=0.1)
    trainer = MHETrainer(model, args, train_dataset=text(), mhe_config=config)
    trainer.train()
    return trainer


@pytest.mark.story
@pytest.mark.slow
@pytest.mark.parametrize("same_tokens", [True, False])
@pytest.mark.filterwarnings("ignore:the norm of the penalty's gradient")
def test_upcycled_experts_part(same_tokens: bool, tmp_path: Path) -> None:
    """A mixture made of copies would stay one expert, at the price of many."""
    without, with_it = upcycled(same_tokens), upcycled(same_tokens)
    plain, trainer = trained(tmp_path, without, None), trained(tmp_path, with_it, "experts")
    assert cosines(with_it).max() < 0.98
    assert cosines(without).mean() > cosines(with_it).mean() + 0.1
    if same_tokens:
        for layer in without.model.layers:
            assert all(torch.equal(expert, layer.mlp.experts.down_proj[0]) for expert in layer.mlp.experts.down_proj)
    logged = [record["mhe_across_energy/experts"] for record in records(trainer)]
    assert logged[0] > logged[-1] > 0.5  # of copies 20, of a right angle 1/2
    losses = [records(each)[-1]["loss"] for each in (plain, trainer)]
    assert losses[1] < 1.05 * losses[0]
    assert not any(key.startswith("mhe_across") for record in records(plain) for key in record)

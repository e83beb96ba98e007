"""Real weights after real training steps: what each method does to the hyperspherical energy of the layers it adapts.

Source: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", arXiv:2306.07280, section 3: one
rotation for all neurons of a layer leaves its hyperspherical energy as it is; LoRA changes it. The figures are
printed: run with `-s`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

peft = pytest.importorskip("peft")

import hf_mhe  # noqa: E402
from hf_mhe.neurons import coverage, neuron_groups  # noqa: E402

STEPS = 8
LAYERS = {"target_modules": ["query", "key", "value", "dense"], "exclude_modules": ["classifier"]}
ADAPTED = ["*.layer.*", "*.pooler.*"]
METHODS = {  # with the learning rate
    "OFT, exact Cayley map": (peft.OFTConfig(oft_block_size=32, use_cayley_neumann=False, **LAYERS), 1e-2),
    "OFT, Neumann series": (peft.OFTConfig(oft_block_size=32, **LAYERS), 1e-2),
    "LoRA": (peft.LoraConfig(r=8, **LAYERS), 4e-3),
}


@dataclass(frozen=True)
class Trained:
    """A method's losses, energies by layer before, after and merged, and how far the weights moved, relatively."""

    losses: list[float]
    before: dict[str, float]
    after: dict[str, float]
    merged: dict[str, float]
    moved: dict[str, float]

    @property
    def drifts(self) -> dict[str, float]:
        return {name: abs(self.after[name] - energy) / energy for name, energy in self.before.items()}


def energies(model: nn.Module) -> dict[str, float]:
    report = hf_mhe.analyze(model, include=ADAPTED)
    return {group.name: group.energy for group in report.groups}


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest, minilm_path: Path) -> tuple[str, Trained]:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=2)
    before = energies(base)
    start = {group.name: group.matrix().detach().clone() for group in neuron_groups(base)}
    config, learning_rate = METHODS[request.param]
    model: Any = peft.get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    tokens = torch.randint(1000, 20000, (8, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1] * 4)
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    moved = {
        group.name: float((group.matrix() - start[group.name]).norm() / start[group.name].norm())
        for group in neuron_groups(model, include=ADAPTED)
    }
    assert {group.name for group in neuron_groups(model, trainable_only=True)} == set(before)
    assert not [name for name in coverage(model).skipped if "lora" in name or "oft" in name]
    found = Trained(losses, before, energies(model), energies(copy.deepcopy(model).merge_and_unload()), moved)
    drifts = sorted(found.drifts.values())
    print(
        f"\n{request.param}, {STEPS} steps, {len(drifts)} layers: loss {losses[0]:.3f} -> {losses[-1]:.3f}; relative "
        f"change of the energy, median {drifts[len(drifts) // 2]:.1e}, largest {drifts[-1]:.1e}; weights moved by "
        f"{min(moved.values()):.1%} to {max(moved.values()):.1%}"
    )
    return request.param, found


@pytest.mark.slow
def test_energy_does_as_the_method_says(trained: tuple[str, Trained]) -> None:
    """OFT's theorem would fail on real weights, or LoRA's change of the energy would go unseen."""
    method, found = trained
    drifts = found.drifts
    assert len(drifts) == 37
    assert found.losses[-1] < found.losses[0]
    assert min(found.moved.values()) > 1e-3, "a layer did not train"
    if method == "OFT, exact Cayley map":
        assert max(drifts.values()) < 1e-5
    elif method == "OFT, Neumann series":
        assert max(drifts.values()) > 1e-5, "no drift: the series would be exact"
    else:
        assert max(drifts.values()) > 1e-5
        assert sorted(drifts.values())[len(drifts) // 2] > 1e-6, "half of the layers kept their energy"


@pytest.mark.slow
def test_energy_is_that_of_the_merged_model(trained: tuple[str, Trained]) -> None:
    """The report of a model in training would not be the report of the model that is published."""
    _, found = trained
    for name, energy in found.merged.items():
        assert found.after[name] == pytest.approx(energy, rel=1e-5), name
    assert list(found.merged) == list(found.after)

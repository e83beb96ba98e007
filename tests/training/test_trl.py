"""trl's Trainers with MHE: a step adds the formula's gradient to the parameters, and only what trains moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForSequenceClassification, Trainer

from tests.training.faces import WORDS, check_a_step, make_llama, make_tokenizer, settings, whole
from tests.training.loops import forget_accelerate

trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.integrations


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def sft(folder: Path, accumulation: int, rank: int, **changes: Any) -> Callable[[Any, dict[str, Any]], Trainer]:
    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        args = trl.SFTConfig(**settings(folder, accumulation, bf16=False, max_length=12, **changes))
        texts = [
            {"text": " ".join(WORDS[4 + (3 * row + 5 * place) % 10] for place in range(4 + row % 4))}
            for row in range(8)
        ]
        torch.manual_seed(2)
        return cls(
            make_llama(),
            args,
            train_dataset=Dataset.from_list(texts),
            processing_class=make_tokenizer(),
            peft_config=lora(rank),
            **mhe,
        )

    return make


def lora(rank: int) -> Any:
    if not rank:
        return None
    # B is not zero at the start: A would have no gradient there
    return peft.LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=["q_proj", "up_proj"], init_lora_weights=False)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "rank"), [(4, 0), (4, 2), whole(1, 0), whole(1, 2)])
def test_sft_trainer(accumulation: int, rank: int, tmp_path: Path) -> None:
    """trl counts tokens in its own way, wraps the model itself, and freezes what an adapter does not train."""
    trainer = check_a_step(trl.SFTTrainer, sft(tmp_path, accumulation, rank), count=2 if rank else 8)
    assert "mean_token_accuracy" in trainer.state.log_history[0]
    assert "mhe_loss" in trainer.state.log_history[0]


PREFERENCES = [
    {
        "prompt": "the dog",
        "chosen": " ".join(WORDS[4 + (3 * row + 5 * place) % 10] for place in range(2 + row % 3)),
        "rejected": " ".join(WORDS[4 + (5 * row + 7 * place) % 10] for place in range(4 - row % 3)),
    }
    for row in range(8)
]


def dpo(folder: Path, accumulation: int, reference: str) -> Callable[[Any, dict[str, Any]], Trainer]:
    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        args = trl.DPOConfig(**settings(folder, accumulation, bf16=False, max_length=16))
        model: Any = make_llama()
        torch.manual_seed(2)
        own: dict[str, Any] = {}
        if reference == "another model":
            own = {"ref_model": copy.deepcopy(model)}
        elif reference == "adapter disabled":
            own = {"peft_config": lora(2)}
        else:
            model = peft.get_peft_model(model, lora(2))
        return cls(
            model,
            args=args,
            train_dataset=Dataset.from_list(PREFERENCES),
            processing_class=make_tokenizer(),
            **own,
            **mhe,
        )

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "accumulation"),
    [
        ("adapter disabled", 4),
        ("adapter copied", 4),
        whole("another model", 4),
        *(whole(reference, 1) for reference in ("another model", "adapter disabled", "adapter copied")),
    ],
)
def test_dpo_trainer(reference: str, accumulation: int, tmp_path: Path) -> None:
    """A step in which trl switches adapters, or runs a second model, would be refused or regularize the wrong one."""
    count = 8 if reference == "another model" else 2
    trainer = check_a_step(trl.DPOTrainer, dpo(tmp_path, accumulation, reference), count)
    assert "rewards/chosen" in trainer.state.log_history[0]
    assert "mhe_loss" in trainer.state.log_history[0]


def grpo(folder: Path) -> Callable[[Any, dict[str, Any]], Trainer]:
    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        args = trl.GRPOConfig(**settings(folder, 4, bf16=False, num_generations=2, max_completion_length=4, seed=3))
        return cls(
            make_llama(),
            reward_funcs=lambda completions, **_: [float(len(each)) for each in completions],
            args=args,
            train_dataset=Dataset.from_list([{"prompt": "the dog"}] * 8),
            processing_class=make_tokenizer(),
            **mhe,
        )

    return make


def reward(folder: Path) -> Callable[[Any, dict[str, Any]], Trainer]:
    def make(cls: type[Trainer], mhe: dict[str, Any]) -> Trainer:
        config = make_llama().config
        config.num_labels = 1  # a score is one neuron, which has no energy
        return cls(
            LlamaForSequenceClassification(config).double(),
            args=trl.RewardConfig(**settings(folder, 4, bf16=False, max_length=16, seed=3)),
            train_dataset=Dataset.from_list(PREFERENCES),
            processing_class=make_tokenizer(),
            **mhe,
        )

    return make


@pytest.mark.engines
@pytest.mark.parametrize(("name", "count"), [("GRPOTrainer", 8), ("RewardTrainer", 7)])
def test_other_trainers_of_trl(name: str, count: int, tmp_path: Path) -> None:
    """A Trainer that generates in its steps, or has a loss of its own, would have another lambda."""
    make = {"GRPOTrainer": grpo, "RewardTrainer": reward}[name]
    check_a_step(getattr(trl, name), make(tmp_path), count)

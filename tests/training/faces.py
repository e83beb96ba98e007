"""One step of a Trainer class with MHE and without, and small models, words and settings for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from hf_mhe import MHEConfig, with_mhe
from tests.training.cases import dense_penalty, relative_difference

HIDDEN, OUTPUT, LEARNING_RATE = 0.7, 0.3, 0.1
CONFIG = MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT)
WORDS = [
    "[PAD]",
    "[BOS]",
    "[EOS]",
    "[UNK]",
    "the",
    "dog",
    "cat",
    "runs",
    "sleeps",
    "over",
    "under",
    "hill",
    "and",
    "a",
]


def whole(*values: Any) -> Any:
    """A case that is left to the run of everything."""
    return pytest.param(*values, marks=pytest.mark.engines)


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )


def make_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, tie_word_embeddings=False,
        )
    ).double()  # fmt: skip


LAYERS = {"q", "k", "v", "o", "wi", "wo", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def effective(layer: Any) -> Tensor:
    """What a linear layer multiplies with, with LoRA or without."""
    if not hasattr(layer, "lora_A"):
        return layer.weight
    scaling, a, b = layer.scaling["default"], layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return layer.base_layer.weight + scaling * b @ a


def terms(model: nn.Module) -> list[tuple[Tensor, float, str]]:
    """What the penalty is a sum over, by the names that the two architectures give their layers; only what trains.

    A head that is the input embedding too has the embedding's weight, 0.
    """
    found = []
    embedding: Any = model.get_input_embeddings()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in LAYERS or last == "lm_head":
            rows = effective(module)
            if rows.requires_grad and rows is not embedding.weight:
                found.append((rows, OUTPUT, "full") if last == "lm_head" else (rows, HIDDEN, "half"))
    return found


def formula(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of the dense formula, by parameter: of those that train."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(
        dense_penalty(terms(model)), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def settings(folder: Path, accumulation: int, **changes: Any) -> dict[str, Any]:
    own = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return {**own, **changes}


def check_a_step(base: type[Trainer], make: Callable[[type[Trainer], dict[str, Any]], Trainer], count: int) -> Trainer:
    """Train with and without MHE: the parameters differ by the formula's gradient, and nothing frozen moved.

    `count` is the number of matrices that the penalty should be a sum over.
    """
    plain = make(base, {})
    plain.train()
    trainer = make(with_mhe(base), {"mhe_config": CONFIG})
    assert isinstance(trainer, base)
    start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    gradient = formula(trainer.model)
    assert len(terms(trainer.model)) == count == len(trainer.mhe_regularizer.groups)
    trainer.train()
    ends = [dict(each.model.named_parameters()) for each in (plain, trainer)]
    for name, value in start.items():
        if name not in gradient:
            assert torch.equal(ends[1][name], value), name
    found = {name: (ends[1][name] - ends[0][name]).detach() for name in gradient}
    assert relative_difference(found, {name: -LEARNING_RATE * value for name, value in gradient.items()}) < 1e-9
    logged = [[record["loss"] for record in each.state.log_history if "loss" in record] for each in (plain, trainer)]
    assert logged[0] == logged[1]
    return trainer

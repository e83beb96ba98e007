"""What the tests know of one family of models: how to build it small, and where its own forward shows its groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**BLOCK, "vocab_size": 60}
LLAMA = {**TEXT, **TOKENS, "num_key_value_heads": 2, "tie_word_embeddings": False}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "n_positions": 24, **TOKENS}
VISION = {**BLOCK, "image_size": 16, "patch_size": 4}

IDS = {"input_ids": torch.tensor([[3, 14, 15, 9, 26, 5]])}
IDS_TO_IDS = {**IDS, "decoder_input_ids": torch.tensor([[1, 7, 8]])}


def given(name: str, *shape: int) -> dict[str, Tensor]:
    """An input of that name with values in [0, 1), the same in every run."""
    return {name: torch.rand(*shape, generator=torch.Generator().manual_seed(0))}


PIXELS = given("pixel_values", 1, 3, 16, 16)

Shown = Mapping[str, slice]
ALL = slice(None)


def apart(q: str, k: str, v: str) -> dict[str, Shown]:
    """Three layers of an attention module, by their names in it."""
    return {q: {"q": ALL}, k: {"k": ALL}, v: {"v": ALL}}


def fused(layer: str) -> dict[str, Shown]:
    """One layer of an attention module that holds all three."""
    return apart(f"{layer}.q", f"{layer}.k", f"{layer}.v")


QKV = apart("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Family:
    """`model` and `config` are classes of transformers, `arguments` the config's, `inputs` what the forward takes.

    `attention` maps the groups of an attention module, by their names in it, to what they give of its "q", "k" and
    "v": which coordinates of each head. `gated` is a fused gated layer in its block, the activation that takes the
    gate, and the layer that takes the product. `outputs` and `tied` (the group's name and aliases) are read off the
    class's forward.
    """

    model: str
    config: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, Tensor] = field(default_factory=lambda: IDS)
    attention: Mapping[str, Shown] = field(default_factory=dict)
    gated: tuple[str, str, str] | None = None
    outputs: frozenset[str] = frozenset()
    tied: tuple[str, tuple[str, ...]] | None = None

    def build(self, device: str = "cpu", *, attn_implementation: str = "eager", **changes: Any) -> nn.Module:
        """The small model, randomly initialised from a seed."""
        import transformers

        config = getattr(transformers, self.config)(**{**self.arguments, **changes})
        torch.manual_seed(0)
        with torch.device(device):
            return getattr(transformers, self.model)._from_config(config, attn_implementation=attn_implementation)

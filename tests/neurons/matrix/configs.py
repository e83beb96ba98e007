"""Configs of any model type without a word about any: fewer layers of every kind, and what a default leaves open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

# How configs call the number of layers or blocks, and the lists with an entry for each.
_COUNT = re.compile(r"(^|_)(layers?|blocks|depth)$")
_PER_STAGE = re.compile(r"(^|_)(depths|num_blocks|num_layers|layers)$")
_EXPERTS = re.compile(r"(^|_)(experts)$")
_CHOSEN = re.compile(r"experts_per_tok(en)?$")
LAYERS, EXPERTS, CHOSEN = 2, 4, 2

# What a config may leave open although its model needs it; a call is given the config.
_OPEN: dict[str, Any] = {
    "backbone": "resnet18",
    "context_length": 8,
    "dropout": 0.0,
    "dropout_rate": 0.0,
    "head_dim": lambda config: config.hidden_size // config.num_attention_heads,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "indexer_head_dim": 256,
    "indexer_kv_heads": 1,
    "indexer_n_heads": 4,
    "layer_types": lambda config: ["full_attention"] * config.num_hidden_layers,
    "mlp_layer_types": lambda config: ["dense"] + ["sparse"] * (config.num_hidden_layers - 1),
    "num_experts": EXPERTS,
    "num_key_value_heads": lambda config: config.num_attention_heads,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "pad_token_id": 0,
    "prediction_length": 4,
    "rope_theta": 10_000.0,
    "vocab_size": 64,
    "vocabulary_map": {"<image>": 0},
}


def fewer_layers(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The default config of a class, but for fewer layers and experts in it and in its sub-configs."""
    return _fewer(config_class())


def _fewer(config: PreTrainedConfig) -> PreTrainedConfig:
    changes: dict[str, Any] = {}
    values = vars(config)
    layers = _enough_layers(values)
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            changes[name] = _fewer(value)
        elif _is_count(value) and _COUNT.search(name):
            changes[name] = min(value, layers)
        elif _is_count(value) and _EXPERTS.search(name):
            changes[name] = min(value, EXPERTS)
        elif _is_count(value) and _CHOSEN.search(name):
            changes[name] = min(value, CHOSEN)
        elif isinstance(value, (list, tuple)) and all(map(_is_count, value)) and _PER_STAGE.search(name):
            changes[name] = type(value)(min(count, LAYERS) for count in value)
        elif isinstance(value, list) and len(value) > layers and len(value) in _counts(values):
            changes[name] = value[:layers]
    return type(config)(**changes)


def _enough_layers(values: dict[str, Any]) -> int:
    """So many layers that each kind of layer that the config tells apart is there."""
    needed = LAYERS
    for value in values.values():
        if isinstance(value, (list, tuple)) and len(value) in _counts(values):
            needed = max(needed, *(value.index(kind) + 1 for kind in value))
    for name, value in values.items():
        # every so many layers, or from so many on, the layers are of another kind
        if _is_count(value) and re.search(r"_(period|offset|interval|step|replace|dense_layers|every_n.*)$", name):
            needed = max(needed, value + 1)
    return needed


def _counts(values: dict[str, Any]) -> set[int]:
    return {value for name, value in values.items() if _is_count(value) and _COUNT.search(name)}


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def complete(config: PreTrainedConfig, error: Exception | None = None) -> list[str]:
    """Fill in what a config and its sub-configs leave open; the names of what was filled in.

    `error` is what the model's constructor said: an attribute that it misses is filled in too.
    """
    filled = []
    missing = re.match(r"'(\w+)' object has no attribute '(\w+)'", str(error))
    for each in _with_parts(config):
        names = [name for name in _OPEN if getattr(each, name, 0) is None]
        if missing is not None and missing[1] == type(each).__name__ and missing[2] in _OPEN:
            names.append(missing[2])
        for name in names:
            value = _OPEN[name]
            setattr(each, name, value(each) if callable(value) else value)
        filled += names
    return filled


def _with_parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _with_parts(value)

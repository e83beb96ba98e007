"""What the curves over the weight of MHE, and the test of the rule drawn from them, are trained on."""

from __future__ import annotations

from typing import Any

from declared._rivals import MHE_FULL

_BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
_NAMES: dict[str, Any] = {
    "kind": "names",
    "data": {"languages": None, "train": 10_000},
    "model": _BERT,
    "base": {"lr": 3e-3, "optimizer": "adam", "steps": 800, "warmup": 50},
    "rank": 4,
}

PERCEPTRON: dict[str, Any] = {
    "name": "perceptron",
    "kind": "images",
    "data": {"name": "fashion-mnist", "train": 10_000, "side": 28},
    "model": {"kind": "mlp", "widths": [64, 64]},
    "recipe": {"lr": 0.05, "steps": 624},
}
CNN: dict[str, Any] = {
    "name": "cnn",
    "kind": "images",
    "data": {"name": "fashion-mnist", "train": 10_000, "side": 14},
    "model": {"kind": "conv", "widths": [8, 16, 32], "depth": 1, "features": 32},
    "recipe": {"lr": 0.05, "steps": 624},
}
FINE_TUNING: dict[str, Any] = {
    **_NAMES, "name": "fine-tuning", "from": "base",
    "recipe": {"lr": 1e-2, "optimizer": "adam", "steps": 400, "warmup": 20},
}  # fmt: skip
LORA: dict[str, Any] = {
    **_NAMES, "name": "LoRA", "from": "lora",
    "recipe": {"lr": 2e-2, "optimizer": "adam", "steps": 400, "warmup": 20},
}  # fmt: skip
VIT: dict[str, Any] = {
    "name": "vit",
    "kind": "images",
    "data": {"name": "fashion-mnist", "train": 10_000, "side": 14},
    "model": {
        "kind": "patches", "intermediate_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 7,
    },
    "recipe": {"lr": 5e-3, "optimizer": "adam", "steps": 624, "warmup": 50},
}  # fmt: skip
TEXT: dict[str, Any] = {
    **_NAMES, "name": "names from scratch", "from": "scratch",
    "data": {"languages": None, "train": None},
    "recipe": {"lr": 3e-3, "optimizer": "adam", "steps": 800, "warmup": 50},
}  # fmt: skip

# As FINE_TUNING, from a base whose neurons a weak penalty has kept from falling together altogether.
PRETRAINED: list[dict[str, Any]] = [
    {**FINE_TUNING, "name": f"base trained with λ = {weight:g}", "base_penalty": {**MHE_FULL, "hidden_weight": weight}}
    for weight in (0.01, 0.1)
]

CURVES = [PERCEPTRON, CNN, FINE_TUNING, LORA]
OTHERS = [VIT, TEXT]

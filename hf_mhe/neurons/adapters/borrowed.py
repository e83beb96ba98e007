"""Weights of methods whose formula is peft's: the layer's own methods, run on the current tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.neurons.adapters.adapted import Adapted, is_transposed


def added(adapted: Adapted, weight: Tensor) -> Tensor:
    """`W + get_delta_weight(adapter)`, which is in the weight's layout."""
    for adapter in adapted.active:
        weight = weight + _delta(adapted, adapter)
    return weight


def added_as_rows(adapted: Adapted, weight: Tensor) -> Tensor:
    """`W + get_delta_weight(adapter)`, which is (out, in) whatever the weight's layout."""
    for adapter in adapted.active:
        delta = _delta(adapted, adapter)
        weight = weight + (delta.T if adapted.is_transposed else delta)
    return weight


def _delta(adapted: Adapted, adapter: str) -> Tensor:
    delta: Tensor = adapted.delta(adapter)
    return delta.to_dense() if delta.is_sparse else delta


def run(adapted: Adapted, weight: Tensor) -> Tensor:
    """The matrix of the layer's forward pass, column by column: what it makes of the unit vectors, less the bias."""

    def columns(layer: Any) -> Tensor:
        inputs = torch.eye(layer.in_features, dtype=weight.dtype, device=weight.device)
        made: Tensor = layer.forward(inputs) - layer.forward(torch.zeros_like(inputs[:1]))
        return made

    made: Tensor = adapted.ask(weight, columns)
    return made if adapted.is_transposed else made.T


def refuses_run(layer: Any, active: tuple[str, ...], base_layer: nn.Module) -> str | None:
    """What is not a dense map."""
    if isinstance(base_layer, nn.Linear) or is_transposed(layer):
        return None
    return f"the weight of a {type(base_layer).__name__} is read after merging only: call merge_adapter() first"


def refuses_several(layer: Any, active: tuple[str, ...], base_layer: nn.Module) -> str | None:
    """Several active C3A adapters: peft's forward pass runs one on what the other made, its merging adds both up."""
    if len(active) > 1:
        return f"peft runs several active ones otherwise than it merges them: activate one of {', '.join(active)}"
    return None

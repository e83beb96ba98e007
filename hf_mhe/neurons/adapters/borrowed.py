"""Weights of methods whose formula is peft's: the layer's own methods, run on the tensors at hand."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.neurons.model.unwrap import bare, qualified

_CONV1D = "transformers.pytorch_utils.Conv1D"


def is_transposed(layer: nn.Module) -> bool:
    """Whether an adapter layer is around a dense map that stores its weight (in, out)."""
    return any(qualified(cls) == _CONV1D for cls in type(bare(layer)).__mro__)


def ask(layer: nn.Module, own: Mapping[str, Tensor], weight: Tensor, question: Callable[[Any], Any]) -> Any:
    """`question(layer)` with the adapter's tensors and the base weight replaced, in eval mode, moving nothing."""
    base_layer = bare(layer)
    path = next(name for name, module in layer.named_modules() if module is base_layer)
    # peft casts parameters through `.data` in places: what it is given are views, which nobody else holds.
    tensors = {f"layer.{name}": tensor.view_as(tensor) for name, tensor in own.items()}
    if base_layer._parameters.get("weight") is not None:
        tensors[f"layer.{path}.weight"] = weight
    modes = [(module, module.training) for module in layer.modules()]
    for module, _ in modes:
        module.training = False
    try:
        return torch.func.functional_call(_Question(layer, question), tensors, (), tie_weights=False)
    finally:
        for module, mode in modes:
            module.training = mode


class _Question(nn.Module):
    def __init__(self, layer: nn.Module, question: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layer = layer
        self.question = question

    def forward(self) -> Any:
        return self.question(self.layer)


def added(layer: Any, active: tuple[str, ...], own: Mapping[str, Tensor], weight: Tensor, original: Tensor) -> Tensor:
    """`W + get_delta_weight(adapter)`, which is in the weight's layout."""
    for adapter in active:
        weight = weight + _delta(layer, adapter, own, original)
    return weight


def added_as_rows(
    layer: Any, active: tuple[str, ...], own: Mapping[str, Tensor], weight: Tensor, original: Tensor
) -> Tensor:
    """`W + get_delta_weight(adapter)`, which is (out, in) whatever the weight's layout."""
    for adapter in active:
        delta = _delta(layer, adapter, own, original)
        weight = weight + (delta.T if is_transposed(layer) else delta)
    return weight


def _delta(layer: Any, adapter: str, own: Mapping[str, Tensor], original: Tensor) -> Tensor:
    delta: Tensor = ask(layer, own, original, operator.methodcaller("get_delta_weight", adapter))
    return delta.to_dense() if delta.is_sparse else delta


def run(layer: Any, active: tuple[str, ...], own: Mapping[str, Tensor], weight: Tensor, original: Tensor) -> Tensor:
    """The matrix of the layer's forward pass, column by column: what it makes of the unit vectors, less the bias."""

    def columns(held: Any) -> Tensor:
        inputs = torch.eye(held.in_features, dtype=weight.dtype, device=weight.device)
        made: Tensor = held.forward(inputs) - held.forward(torch.zeros_like(inputs[:1]))
        return made

    made: Tensor = ask(layer, own, weight, columns)
    return made if is_transposed(layer) else made.T


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

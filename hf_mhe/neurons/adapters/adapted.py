"""An adapter layer of peft with its tensors: what a method makes the effective weight of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.neurons.model.unwrap import bare, qualified

_CONV1D = "transformers.pytorch_utils.Conv1D"


@dataclass(frozen=True, eq=False)
class Adapted:
    """One adapter layer: `active` are its active adapters, `own` their parameters by their names in the layer.

    `original` is the base layer's weight, whatever other adapters made of it since.
    """

    layer: Any
    active: tuple[str, ...]
    own: Mapping[str, Tensor]
    original: Tensor

    @property
    def is_transposed(self) -> bool:
        """Whether the layer is around a dense map that stores its weight (in, out)."""
        return is_transposed(self.layer)

    def ask(self, weight: Tensor, question: Callable[[Any], Any]) -> Any:
        """`question(layer)` with these tensors and `weight` as the base weight, in eval mode, moving nothing."""
        base_layer = bare(self.layer)
        path = next(name for name, module in self.layer.named_modules() if module is base_layer)
        # peft casts parameters through `.data` in places: what it is given are views, which nobody else has.
        tensors = {f"layer.{name}": tensor.view_as(tensor) for name, tensor in self.own.items()}
        if base_layer._parameters.get("weight") is not None:
            tensors[f"layer.{path}.weight"] = weight
        modes = [(module, module.training) for module in self.layer.modules()]
        for module, _ in modes:
            module.training = False
        try:
            return torch.func.functional_call(_Question(self.layer, question), tensors, (), tie_weights=False)
        finally:
            for module, mode in modes:
                module.training = mode

    def delta(self, adapter: str) -> Any:
        """What peft's own `get_delta_weight` gives for one adapter."""
        return self.ask(self.original, operator.methodcaller("get_delta_weight", adapter))


class _Question(nn.Module):
    def __init__(self, layer: nn.Module, question: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layer = layer
        self.question = question

    def forward(self) -> Any:
        return self.question(self.layer)


def is_transposed(layer: nn.Module) -> bool:
    """Whether an adapter layer is around a dense map that stores its weight (in, out)."""
    return any(qualified(cls) == _CONV1D for cls in type(bare(layer)).__mro__)

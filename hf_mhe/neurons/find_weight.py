"""The weight that a module computes with under a name: adapted, quantized, or as torch stores it, in this order."""

from __future__ import annotations

from torch import nn

from hf_mhe.neurons.adapters.effective import adapted_weight
from hf_mhe.neurons.model.weight import Finder, Weight, torch_weight
from hf_mhe.neurons.quantized.formats import quantized_live_weight

_OF_ONE_LAYER: tuple[Finder, ...] = (quantized_live_weight, torch_weight)


def find_weight(module: nn.Module, attribute: str) -> Weight | None:
    """The weight that a module computes with under a name, or None where it has no such tensor."""
    return adapted_weight(module, attribute, _of_one_layer) or _of_one_layer(module, attribute)


def _of_one_layer(module: nn.Module, attribute: str) -> Weight | None:
    """The weight of a module without what adapters change of it."""
    return next((found for find in _OF_ONE_LAYER if (found := find(module, attribute)) is not None), None)

"""What one way of storing weights is to this package: the record that each format's file ends with."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from hf_mhe.neurons.kinds.registry import Reader
from hf_mhe.neurons.model.weight import Weight
from hf_mhe.neurons.quantized.stored import Packed, Tensors, Unread


def _nothing_missing(tensors: Tensors, taken: Container[str]) -> None:
    """The check of a format whose tensors stand alone."""


def _nothing_unread(module: nn.Module) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Format:
    """One way of storing weights, in checkpoints and in live modules; `FORMATS` lists them all.

    Args:
        name: What it is called.
        stored_weights: Finds its weights among a checkpoint's tensors.
        methods: What configs call it (`quant_method`, in lower case, with hyphens); empty for one that has no config.
        check_complete: Raises where tensors that are in no weight need others that the checkpoint lacks.
        live_weight: The weight that a module has under a name, None where it has none of this format.
        unread: The tensors of this format in a module that cannot be read, by attribute, each with the reason.
        layers: Readers of its own layers, by the qualified name of the class, which is not imported.
        left_over: Whether `stored_weights` is given only what no other format has taken.
    """

    name: str
    stored_weights: Callable[[Tensors], Iterator[Packed | Unread]]
    methods: tuple[str, ...] = ()
    check_complete: Callable[[Tensors, Container[str]], None] = _nothing_missing
    live_weight: Callable[[nn.Module, str], Weight | None] | None = None
    unread: Callable[[nn.Module], Mapping[str, str]] = _nothing_unread
    layers: Mapping[str, Reader] = field(default_factory=dict)
    left_over: bool = False

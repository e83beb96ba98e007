"""How each method of peft changes the weight it adapts: one line a method.

A method that is not in the table is refused by name. Which of the installed peft's methods are right here is found out
by tests, which compare each with the layer's own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_mhe.neurons.adapters import borrowed, lora, orthogonal, scaling
from hf_mhe.neurons.adapters.adapted import Adapted
from hf_mhe.neurons.model.identity import place

Change = Callable[[Adapted, Tensor], Tensor]
"""Of a layer with its adapters and the weight as changed so far: the weight."""


def _never(layer: Any, active: tuple[str, ...], base_layer: nn.Module) -> str | None:
    return None


def _by_its_parameters(layer: Any, active: tuple[str, ...], own: Mapping[str, Tensor]) -> Hashable:
    return tuple(place(tensor) for tensor in own.values())


@dataclass(frozen=True)
class Method:
    """How a method changes a weight, differentiably, and the reason why one layer has no such weight, or None.

    `biases` are the containers of parameters that change a bias alone; `identity` is equal for layers that change one
    and the same weight to one and the same.
    """

    change: Change
    refuses: Callable[[Any, tuple[str, ...], nn.Module], str | None] = _never
    biases: tuple[str, ...] = ()
    identity: Callable[[Any, tuple[str, ...], Mapping[str, Tensor]], Hashable] = _by_its_parameters


_ADDED = Method(borrowed.added)
_RUN = Method(borrowed.run, borrowed.refuses_run)

METHODS: dict[str, Method] = {
    "adalora": _ADDED,
    "adamss": _ADDED,
    "beft": Method(scaling.unchanged, biases=("beft_bias",)),
    "boft": Method(orthogonal.butterfly),
    "c3a": Method(borrowed.added, borrowed.refuses_several),
    "deft": _RUN,
    "delora": _ADDED,
    "fourierft": Method(borrowed.added_as_rows),
    "frod": _ADDED,
    "glora": Method(borrowed.run, borrowed.refuses_run, biases=("glora_C", "glora_D", "glora_E")),
    "gralora": _ADDED,
    "hira": Method(scaling.hadamard),
    "hra": _RUN,
    "ia3": Method(scaling.ia3),
    "loha": Method(scaling.loha),
    "lokr": _ADDED,
    "lora": Method(lora.change, lora.refuses, identity=lora.identity),
    "miss": _RUN,
    "oft": Method(orthogonal.rotated, orthogonal.refuses_rotation),
    "osf": _RUN,
    "peanut": _RUN,
    "psoft": _ADDED,
    "pvera": _ADDED,
    "randlora": _ADDED,
    "road": _RUN,
    "shira": _ADDED,
    "supertuning": _RUN,
    "tinylora": _ADDED,
    "trainable_tokens": Method(scaling.replaced_rows),
    "unilora": _ADDED,
    "vblora": _ADDED,
    "vera": _ADDED,
    "waveft": Method(borrowed.added_as_rows),
}

# Layers that mix their adapters anew for each input have no one weight.
OF_THE_INPUT = frozenset({"lily", "poly", "shadow"})

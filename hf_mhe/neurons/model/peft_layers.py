"""What peft put around a module, and which of its adapters count now."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from hf_mhe.errors import MHEError

AGAIN = "make the groups again with neuron_groups(model), and in training a new MHERegularizer"

# Classes of peft that stand in the place of a module, and the attribute under which they hold it.
_HOLDERS = {
    "PeftModel": "base_model",
    "PeftMixedModel": "base_model",
    "BaseTuner": "model",
    "XLoraModel": "lora_model",
    "AdaptionPromptModel": "model",
    "_BaseAdaptedAttention": "model",
    "BaseTunerLayer": "base_layer",
    "TrainableTokensWrapper": "token_adapter",
}


_names: dict[type, tuple[str, ...]] = {}  # asked of every module above every weight, in every step


def _names_of_peft(kind: type) -> tuple[str, ...]:
    if kind not in _names:
        _names[kind] = tuple(cls.__name__ for cls in kind.__mro__ if cls.__module__.partition(".")[0] == "peft")
    return _names[kind]


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of the user's model with adapters around it (peft's `BaseTunerLayer`)."""
    return "BaseTunerLayer" in _names_of_peft(type(module))


def is_copied(module: nn.Module) -> bool:
    """Whether a module is peft's `ModulesToSaveWrapper`: an original and one trained copy for each adapter."""
    return "ModulesToSaveWrapper" in _names_of_peft(type(module))


def inside(module: nn.Module) -> str | None:
    """The attribute path of the module in whose place a wrapper of peft stands; None for all other modules."""
    if is_copied(module):
        return _active_copy(module)
    return next((_HOLDERS[name] for name in _names_of_peft(type(module)) if name in _HOLDERS), None)


def _active_copy(wrapper: Any) -> str:
    """Which copy a `ModulesToSaveWrapper` runs: its forward decides so."""
    active = wrapper.active_adapters
    if wrapper.disable_adapters or not active or any(name not in wrapper.modules_to_save for name in active):
        return "original_module"
    return f"modules_to_save.{active[0]}"


def copies(wrapper: Any) -> dict[str, nn.Module]:
    """All copies of a `ModulesToSaveWrapper`, by their attribute path."""
    trained = {f"modules_to_save.{name}": module for name, module in wrapper.modules_to_save.items()}
    return {"original_module": wrapper.original_module, **trained}


def method_of(layer: nn.Module) -> str:
    """The name of an adapter layer's method, which is that of its package in peft: "lora", "oft", "vera", ..."""
    for cls in type(layer).__mro__:
        package, _, rest = cls.__module__.partition(".tuners.")
        if package == "peft" and rest != "tuners_utils":
            return rest.partition(".")[0]
    return type(layer).__name__  # a method from outside peft


class State(NamedTuple):
    """Which adapters of a layer take part in its forward pass."""

    active: tuple[str, ...]
    merged: tuple[str, ...]
    disabled: bool

    def __str__(self) -> str:
        return f"active {self.active}, merged {self.merged}{', disabled' if self.disabled else ''}"


def state_of(layer: Any) -> State:
    """The state of one adapter layer; of the active adapters, those that it has."""
    active = (adapter for adapter in layer.active_adapters if own_parameters(layer, adapter))
    return State(tuple(active), tuple(layer.merged_adapters), bool(layer.disable_adapters))


def check_state(layer: nn.Module, then: State) -> None:
    """Refuse to go on where another adapter counts now than did when a neuron group was made.

    Raises:
        MHEError: names both states.
    """
    now = state_of(layer)
    if now != then:
        raise MHEError(
            f"the {method_of(layer)} adapters of its {type(layer).__name__} layer changed since the neuron groups "
            f"were made: {now}, then {then}; {AGAIN}"
        )


def check_copies(root: nn.Module, path: str) -> None:
    """Refuse to go on where peft's `modules_to_save` runs another copy now than the one at a path.

    Raises:
        MHEError: names both copies.
    """
    module, names = root, path.split(".") if path else []
    for place, name in enumerate(names):
        if is_copied(module):
            rest, active = ".".join(names[place:]), _active_copy(module)
            if not f"{rest}.".startswith(f"{active}."):
                raise MHEError(f"peft runs {active!r} in place of {rest!r} since the neuron groups were made; {AGAIN}")
        module = getattr(module, name)


def own_parameters(layer: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The parameters of one adapter in one layer, by their names in the layer; biases are no part of a weight."""
    found: dict[str, Tensor] = {}
    for container, module in layer._modules.items():
        if module is None or container == "base_layer":
            continue
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name.partition(".")[0] == adapter and not name.endswith(".bias"):
                found[f"{container}.{name}"] = parameter
    return found

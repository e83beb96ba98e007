"""The modules of a model by the names they had before peft wrapped them, and those that are not in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from hf_mhe.neurons.model.peft_layers import copies, inside, is_adapter_layer, is_copied, method_of, state_of
from hf_mhe.neurons.model.unwrap import clean


@dataclass(frozen=True)
class Visit:
    """One module: its real path, and the name it has in the model without adapters.

    `below_adapter` marks a base layer (or an adapter layer inside another), which the layer around it speaks for.
    `aside` says why the module's parameters are no neurons by themselves; None where they may be.
    """

    path: str
    name: str
    module: nn.Module
    aside: str | None = None
    below_adapter: bool = False


def visits(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Visit]:
    """Each of the modules once, in their order; parents must come before their children, as in `named_modules`."""
    found: dict[str, Visit] = {}
    seen: set[int] = set()
    stands_for: dict[int, str] = {}
    aside: dict[int, str] = {}
    spoken_for: set[int] = set()
    for path, module in modules:
        if id(module) in seen:
            continue
        seen.add(id(module))
        parent_path, _, attribute = path.rpartition(".")
        parent = found.get(parent_path) if path else None
        name, reason = "", None
        if parent is not None:
            name, reason = clean(f"{parent.name}.{attribute}").lstrip("."), parent.aside
        name = stands_for.get(id(module), name)
        reason = aside.get(id(module), reason)
        found[path] = Visit(path, name, module, reason, id(module) in spoken_for)
        inner = inside(module)
        if inner is not None:
            stands_for[id(module.get_submodule(inner))] = name
            if is_adapter_layer(module) or found[path].below_adapter:
                spoken_for.add(id(module.get_submodule(inner)))
        if is_copied(module):
            aside.update(_copies_aside(module, inner))
        elif is_adapter_layer(module):
            aside.update(_own_modules_aside(module))
        yield found[path]


def _copies_aside(wrapper: nn.Module, active: str | None) -> Iterator[tuple[int, str]]:
    for path, copy in copies(wrapper).items():
        if path != active:
            yield id(copy), f"not in use: peft's modules_to_save runs {active!r} in its place"


def _own_modules_aside(layer: nn.Module) -> Iterator[tuple[int, str]]:
    for container, module in layer._modules.items():
        if module is not None and container != "base_layer":
            yield id(module), f"{container} of a {method_of(layer)} adapter: no neurons by itself"


def standing(layer: nn.Module) -> dict[str, str]:
    """What each adapter has to do with its weight, by the names of the adapters' parameters in the layer."""
    state, method = state_of(layer), method_of(layer)
    found: dict[str, str] = {}
    for container, module in layer._modules.items():
        if module is None or container == "base_layer":
            continue
        for name, _ in module.named_parameters(remove_duplicate=False):
            adapter = name.partition(".")[0]
            if state.disabled:
                reason = "disabled, no part of the weight"
            elif adapter in state.merged:
                reason = "merged, its part is in the base layer's weight"
            elif adapter not in state.active:
                reason = "not active, no part of the weight"
            else:
                reason = f"{container} holds no neurons of its own"
            found[f"{container}.{name}"] = f"{method} adapter {adapter!r}: {reason}"
    return found

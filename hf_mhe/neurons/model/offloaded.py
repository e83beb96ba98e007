"""Parameters that accelerate keeps elsewhere between forward passes: read where they are.

`cpu_offload`, `disk_offload` and `device_map` leave parameters on the meta device, and a hook at the module, or at one
above it, that brings the values when they are needed. The values are asked for through the same map, and nothing of
the model is changed.

Note [Ties across an offload]. Each name gets a parameter of its own on the meta device, so that two names of one
matrix are no longer one object. They are found to be one again where their values in memory are one, and on disk where
the model says that it ties them and the values are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def offloaded_value(root: nn.Module, name: str) -> Tensor | None:
    """The value of a parameter on the meta device, by its dotted name, from its hook; None where no hook has it."""
    found = _place(root, name)
    if found is None:
        return None
    values, key = found
    value = values[key]
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


def offloaded_ties(root: nn.Module) -> dict[int, Tensor]:
    """The `id` of a parameter on the meta device -> the parameter of its first name. See Note [Ties ...]."""
    if not any(hasattr(module, "_hf_hook") for module in root.modules()):
        return {}
    parameters = {name: p for name, p in root.named_parameters(remove_duplicate=False) if p.is_meta}
    first: dict[object, Tensor] = {}
    ties: dict[int, Tensor] = {}
    for name, parameter in parameters.items():
        resident = _in_memory(root, name)
        if resident is not None:
            place = resident.untyped_storage().data_ptr(), resident.storage_offset(), tuple(resident.shape)
            ties[id(parameter)] = first.setdefault(place, parameter)
    declared = getattr(root, "all_tied_weights_keys", None)
    for other, own in declared.items() if isinstance(declared, Mapping) else ():
        if (
            own in parameters
            and other in parameters
            and id(parameters[other]) not in ties
            and _equal(root, own, other)
        ):
            ties[id(parameters[other])] = parameters[own]
    return ties


def _equal(root: nn.Module, name: str, other: str) -> bool:
    one, two = offloaded_value(root, name), offloaded_value(root, other)
    return one is not None and two is not None and torch.equal(one, two)


def _place(root: nn.Module, name: str) -> tuple[Mapping[str, Any], str] | None:
    """The map of values that a hook has for a parameter, and the name in it: of its own module's hook first."""
    parts = name.split(".")
    for length in range(len(parts) - 1, -1, -1):
        try:
            module = root.get_submodule(".".join(parts[:length]))
        except AttributeError:  # a path into something that is no module: a part of a parametrization, say
            continue
        key = ".".join(parts[length:])
        for values in _maps(module):
            if key in values:
                return values, key
    return None


def _maps(module: nn.Module) -> Iterator[Mapping[str, Any]]:
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):  # several hooks of one module are inside one
        values = getattr(each, "weights_map", None)
        if getattr(each, "offload", False) and values is not None:
            yield values


def _in_memory(root: nn.Module, name: str) -> Tensor | None:
    """The tensor itself that a parameter's values are, where they are in memory and not on disk."""
    found = _place(root, name)
    if found is None:
        return None
    values, key = found
    while hasattr(values, "dataset") and hasattr(values, "prefix"):  # accelerate's view of a map below a prefix
        values, key = values.dataset, f"{values.prefix}{key}"
    stored = values if isinstance(values, dict) else getattr(values, "state_dict", {})
    value = stored.get(key)
    return value if isinstance(value, Tensor) else None

"""What a hook on a forward pass does to the output: it changes one tensor of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def change_first(value: Any, change: Callable[[Tensor], Tensor]) -> tuple[Any, bool]:
    """The value with the first tensor in it that requires a gradient changed, and whether there was one."""
    if isinstance(value, Tensor):
        return (change(value), True) if value.requires_grad else (value, False)
    if isinstance(value, Mapping):
        for key, item in value.items():
            changed, found = change_first(item, change)
            if found:
                value[key] = changed  # type: ignore[index]  # outputs of models are dicts, and are changed in place
                return value, True
    elif type(value) in (tuple, list):
        for index, item in enumerate(value):
            changed, found = change_first(item, change)
            if found:
                return type(value)((*value[:index], changed, *value[index + 1 :])), True
    return value, False

"""One small model of any model type, on the meta device; or why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from tests.neurons.matrix.configs import complete, fewer_layers


class NotBuiltError(Exception):
    """A class that could not be built, with what its constructor said."""


def build(cls: type[nn.Module], config_class: type[PreTrainedConfig], **changes: Any) -> nn.Module:
    """A model of a class: from its default config with fewer layers; else from the default, each completed if need be.

    `changes` are attributes of the config to set before.

    Raises:
        NotBuiltError: none of these builds.
    """
    said: Exception | None = None
    for make in (fewer_layers, lambda config_class: config_class()):
        try:
            return _build(cls, make, config_class, changes)
        except Exception as error:  # a constructor may say that it lacks something in any way
            said = error
            if isinstance(error, ImportError):
                break
    library = re.search(r"requires the (\S+) library", str(said))
    if library is not None:
        raise NotBuiltError(f"ImportError: needs {library[1]}, which is not installed") from said
    first_line = next((line for line in str(said).splitlines() if line.strip()), "")
    raise NotBuiltError(f"{type(said).__name__}: {first_line}") from said


def _build(cls: Any, make: Callable[[Any], PreTrainedConfig], config_class: Any, changes: dict[str, Any]) -> nn.Module:
    config = make(config_class)
    for name, value in changes.items():
        setattr(config, name, value)
    for _ in range(4):
        try:
            with torch.device("meta"):
                return cls._from_config(config)
        except Exception as error:
            if not complete(config, error):
                raise
    raise AssertionError

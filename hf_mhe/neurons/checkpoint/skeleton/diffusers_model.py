"""diffusers' models: UNets, transformers, autoencoders, ControlNets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hf_mhe.neurons.checkpoint.skeleton.library import cannot_build, library
from hf_mhe.text import one_line


def diffusers_skeleton(config: dict[str, Any]) -> nn.Module | str:
    """The model of the class `_class_name`; see `build_skeleton`."""
    name = str(config["_class_name"])
    diffusers = library("diffusers", name)
    if isinstance(diffusers, str):
        return diffusers
    try:
        model_class = getattr(diffusers, name, None)
    except Exception as error:  # diffusers imports a class's file when the class is asked for
        return f"{name} cannot be imported from diffusers: {one_line(error)}"
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        return f"model class {name!r} is not known to the installed diffusers"
    # How weights are packed on disk is the reader's concern, and no argument of a constructor.
    arguments = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        with torch.device("meta"):
            model: nn.Module = model_class.from_config(arguments)  # type: ignore[attr-defined]
    except ImportError as error:
        return f"{name} cannot be built: {one_line(error)}"
    except Exception as error:  # a config can break a model's constructor in any way; all become one named error
        raise cannot_build("diffusers", name, error) from error
    return model.eval()


def renamed_on_load(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Stored name -> the name that the model's own loader gives it: attention blocks of old autoencoders are renamed.

    Models that rename nothing, and all that are not of diffusers, keep the names as they are.
    """
    by_target = {name: name for name in names}
    rename = getattr(model, "_fix_state_dict_keys_on_load", None)
    if callable(rename):
        rename(by_target)
    return {stored: target for target, stored in by_target.items()}

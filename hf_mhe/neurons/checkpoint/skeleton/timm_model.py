"""timm's models, from the config that `save_for_hf` and `push_to_hf_hub` write."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from hf_mhe.neurons.checkpoint.skeleton.library import cannot_build, library


def timm_skeleton(config: dict[str, Any]) -> nn.Module | str:
    """The model `architecture` with the saved `model_args`; see `build_skeleton`."""
    name = str(config["architecture"])
    timm = library("timm", f"architecture {name!r}")
    if isinstance(timm, str):
        return timm
    if not timm.is_model(name):
        return f"architecture {name!r} is not known to the installed timm"
    # Older configs are the pretrained_cfg itself.
    saved = config.get("pretrained_cfg", {key: value for key, value in config.items() if key != "architecture"})
    arguments: dict[str, Any] = {"pretrained_cfg": dict(saved)}
    classes = config.get("num_classes", saved.get("num_classes"))
    if classes is not None:
        arguments["num_classes"] = classes
    # What create_model itself takes (a path of weights to load, say) is not the config's to choose.
    own = inspect.signature(timm.create_model).parameters
    arguments.update({key: value for key, value in (config.get("model_args") or {}).items() if key not in own})
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # a config can break a model's constructor in any way; all become one named error
        raise cannot_build("timm", name, error) from error
    return model.eval()

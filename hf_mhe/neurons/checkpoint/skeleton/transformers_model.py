"""transformers' models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_mhe.neurons.checkpoint.skeleton.library import cannot_build, library
from hf_mhe.text import one_line

# How transformers writes the floats that JSON does not have.
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def transformers_skeleton(config: dict[str, Any], declared: str | None) -> nn.Module | str:
    """The model of the class `declared` or of `architectures`, or the base model of `model_type`."""
    model_type = str(config["model_type"])
    architectures = [str(name) for name in config.get("architectures") or []]
    named = _named_classes(architectures, declared)
    config_class = _config_class(model_type, named)
    if config_class is None:
        return f"model type {model_type!r} is not known to the installed transformers"
    what = ", ".join(architectures) or model_type
    try:
        parsed = config_class.from_dict(_floats_decoded(config))
        # How attention or experts are computed changes no parameter, and a kernel named here may not be installed.
        parsed._attn_implementation = "eager"
        model_class = named[0] if named else _base_model_class(parsed)
        if model_class is None:
            return f"transformers has no model class for {what}"
        with torch.device("meta"):
            model = model_class._from_config(parsed)
    except ImportError as error:
        return f"{what} cannot be built: {one_line(error)}"
    except Exception as error:  # a config can break a model's constructor in any way; all become one named error
        raise cannot_build("transformers", what, error) from error
    model.tie_weights()
    return model.eval()


def _named_classes(architectures: list[str], declared: str | None) -> list[Any]:
    """The model classes of transformers that a checkpoint names, the one that an index declares first."""
    import transformers

    candidates = [getattr(transformers, name, None) for name in architectures]
    if declared is not None:
        candidates.insert(0, _declared_class(declared))
    return [
        found for found in candidates if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    ]


def _config_class(model_type: str, named: list[Any]) -> Any:
    """The class of configs of a model type; that of a part of a larger model may be known to its model class only."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    own = (getattr(model_class, "config_class", None) for model_class in named)
    return next((found for found in own if getattr(found, "model_type", None) == model_type), None)


def _base_model_class(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, (tuple, list)) else found


def _floats_decoded(value: Any) -> Any:
    """A config with `{"__float__": "Infinity"}` as what it stands for."""
    if isinstance(value, dict):
        tag = value.get("__float__") if len(value) == 1 else None
        return (
            _FLOATS[tag]
            if isinstance(tag, str) and tag in _FLOATS
            else {key: _floats_decoded(inner) for key, inner in value.items()}
        )
    return [_floats_decoded(inner) for inner in value] if isinstance(value, list) else value


def _declared_class(declared: str) -> Any:
    """The class that a pipeline's index names; its own models of transformers lie in diffusers (safety checkers)."""
    home, _, name = declared.rpartition(".")
    if home != "transformers" and not home.startswith("diffusers."):
        return None
    found = library(home, name)
    return None if isinstance(found, str) else getattr(found, name, None)

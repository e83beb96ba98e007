"""transformers' models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_mhe.neurons.skeleton.library import cannot_build, library, one_line


def transformers_skeleton(config: dict[str, Any], declared: str | None) -> nn.Module | str:
    """The model of the class `declared` or of `architectures`, or the base model of `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        return f"model type {model_type!r} is not known to the installed transformers"
    architectures = config.get("architectures") or []
    what = ", ".join(architectures) or model_type
    try:
        parsed = CONFIG_MAPPING[model_type].from_dict(dict(config))
        # How attention or experts are computed changes no parameter, and a kernel named here may not be installed.
        parsed._attn_implementation = "eager"
        model_class = _model_class(architectures, parsed, declared)
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


def _model_class(architectures: list[str], config: Any, declared: str | None) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    candidates = [getattr(transformers, name, None) for name in architectures]
    if declared is not None:
        candidates.insert(0, _declared_class(declared))
    for found in candidates:
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    found = MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, (tuple, list)) else found


def _declared_class(declared: str) -> Any:
    """The class that a pipeline's index names; its own models of transformers lie in diffusers (safety checkers)."""
    home, _, name = declared.rpartition(".")
    if home != "transformers" and not home.startswith("diffusers."):
        return None
    found = library(home, name)
    return None if isinstance(found, str) else getattr(found, name, None)

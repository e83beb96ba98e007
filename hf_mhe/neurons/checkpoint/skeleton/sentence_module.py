"""sentence-transformers' modules that stand behind the transformer: Dense layers, recurrent and convolutional ones."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import nn

from hf_mhe.neurons.checkpoint.skeleton.library import cannot_build, library

_AROUND_A_TRANSFORMER = ("Transformer", "MLMTransformer", "CLIPModel")
# Built from a stranger's config: only classes whose constructors read no file and import nothing by name.
_LAYERS = ("CNN", "Dense", "LSTM", "LayerNorm", "SparseAutoEncoder", "WeightedLayerPooling")


def holds_transformer(declared: str) -> bool:
    """Whether a module type of modules.json is a wrapper around one model of transformers."""
    return declared.rpartition(".")[2] in _AROUND_A_TRANSFORMER


def transformer_attribute() -> str:
    """Under which name the installed sentence-transformers holds the model of transformers in its module."""
    modules = library("sentence_transformers.models", "Transformer")
    # Once the attribute itself, `auto_model` is now a property that answers with `model`.
    former = not isinstance(modules, str) and not hasattr(modules.Transformer, "auto_model")
    return "auto_model" if former else "model"


def sentence_skeleton(config: dict[str, Any], declared: str) -> nn.Module | str:
    """The module of a class inside sentence-transformers; see `build_skeleton`."""
    home, _, name = declared.rpartition(".")
    if name not in _LAYERS:
        return f"module type {declared!r} is not built from its config.json alone"
    root = library("sentence_transformers", name)
    if isinstance(root, str):
        return root
    try:
        module_class = getattr(importlib.import_module(home), name)
    except (ImportError, AttributeError):
        return f"module type {declared!r} is not known to the installed sentence-transformers"
    takes = inspect.signature(module_class).parameters
    # The activation is saved as the name of a class; it has no weights.
    arguments = {key: value for key, value in config.items() if key in takes and key != "activation_function"}
    try:
        with torch.device("meta"):
            module: nn.Module = module_class(**arguments)
    except Exception as error:  # a config can break a constructor in any way; all become one named error
        raise cannot_build("sentence-transformers", name, error) from error
    return module.eval()

"""The model types of the installed transformers and the classes it has for each: asked of it, never written down."""

from __future__ import annotations

import importlib
import itertools
import re
from functools import cache
from typing import Any

from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_mhe.neurons.kinds.fused.split import SPLITTERS, Splitter


def model_types() -> list[str]:
    """Every config type that transformers knows, in alphabetical order."""
    return sorted(CONFIG_MAPPING.keys())


def selection(count: int) -> list[str]:
    """So many model types of great variety, by rule: of each task of transformers, and of each layout of a fused
    projection that hf_mhe knows, the first type that is not chosen yet; in turn, the tasks with most types first.
    """
    names = [value for name, value in vars(modeling_auto).items() if re.fullmatch(r"MODEL_FOR_\w+_NAMES", name)]
    by_task = [list(types) for types in sorted(names, key=len, reverse=True)]
    layouts: dict[Splitter, list[str]] = {}
    for name, splitter in SPLITTERS.items():
        layouts.setdefault(splitter, []).append(name.split(".")[2])
    chosen: dict[str, None] = {}
    for pair in itertools.zip_longest(by_task, layouts.values(), fillvalue=[]):
        for types in pair:
            new = (name for name in types if name in CONFIG_MAPPING and name not in chosen)
            chosen.update(dict.fromkeys(itertools.islice(new, 1)))
    return [*chosen][:count]


@cache
def tasks() -> dict[str, Any]:
    """Task -> transformers' mapping from config classes to the model classes that have its head."""
    return {
        name.removeprefix("MODEL_FOR_").removesuffix("_MAPPING"): mapping
        for name, mapping in sorted(vars(modeling_auto).items())
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING")
    }


def base_classes(config_class: type) -> list[type[nn.Module]]:
    """The class without a head that AutoModel builds; else those of the model's own file that take the config."""
    return _classes(modeling_auto.MODEL_MAPPING, config_class) or _in_file(config_class)


def head_classes(config_class: type) -> dict[type[nn.Module], str]:
    """The classes with a task's head, each with the first task it is registered for."""
    heads: dict[type[nn.Module], str] = {}
    base = set(_classes(modeling_auto.MODEL_MAPPING, config_class))
    for task, mapping in tasks().items():
        for cls in _classes(mapping, config_class):
            if cls not in base:
                heads.setdefault(cls, task)
    return heads


def _classes(mapping: Any, config_class: type) -> list[type[nn.Module]]:
    try:
        found = mapping.get(config_class, ())
    except (ImportError, ValueError):  # a class that needs a library, or that the installed transformers lacks
        return []
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _in_file(config_class: type) -> list[type[nn.Module]]:
    from transformers import PreTrainedModel

    name = config_class.__module__.replace(".configuration_", ".modeling_")
    try:
        module = importlib.import_module(name)
    except ImportError:  # the config has no model file, or the file needs a library that is not installed
        return []
    return [
        cls
        for cls in vars(module).values()
        if isinstance(cls, type)
        and issubclass(cls, PreTrainedModel)
        and cls.__module__ == name
        and cls.config_class is config_class
        and not cls.__name__.endswith("PreTrainedModel")
    ]

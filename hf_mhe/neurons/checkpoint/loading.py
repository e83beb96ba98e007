"""Which tensors of a checkpoint make which tensor of a model, by the rules for loading of the model's own library.

The renamings and conversions (fused, split, permuted weights) are those of the installed transformers or diffusers,
run on names and, for the shapes, on tensors without storage; nothing is written down here a second time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.checkpoint.skeleton.diffusers_model import renamed_on_load
from hf_mhe.neurons.source import Get, Stored, StoredTensor
from hf_mhe.text import one_line


@dataclass(frozen=True)
class ConvertedTensor:
    """A model tensor that transformers makes from other tensors while loading; `sources` are (pattern, name) pairs."""

    converter: Any
    sources: tuple[tuple[str, str], ...]
    first_target: str
    target: str
    model: Any

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.sources)

    @property
    def key(self) -> Hashable:
        return self.first_target, self.sources

    def pick(self, made: Mapping[str, Tensor]) -> Tensor:
        return made[self.target]

    def one_expert(self, index: int, experts: int) -> ConvertedTensor | None:
        """The conversion that makes a stack of one expert, or None where the experts are not stored one by one."""
        from transformers.core_model_loading import Concatenate, MergeModulelist

        first, *others = self.converter.operations
        names: dict[str, list[str]] = {}
        for pattern, name in self.sources:
            names.setdefault(pattern, []).append(name)
        if not isinstance(first, MergeModulelist) or first.dim != 0:
            return None
        if not all(isinstance(other, Concatenate) and other.dim > 0 for other in others):
            return None
        if any(len(of_pattern) != experts for of_pattern in names.values()):
            return None
        return replace(self, sources=tuple((pattern, of_pattern[index]) for pattern, of_pattern in names.items()))

    def make(self, get: Get) -> dict[str, Tensor]:
        """All model tensors that this conversion makes, by name."""
        converter = deepcopy(self.converter)
        for pattern, name in self.sources:
            converter.add_tensor(self.first_target, name, pattern, get(name))
        made = converter.convert(self.first_target, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class Loading:
    """`sources`: model tensor name -> how it is read; `shapes`: its shape then; `unused`: tensors with no taker."""

    sources: dict[str, Stored]
    shapes: dict[str, tuple[int, ...]]
    unused: list[str]


def plan_loading(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Loading:
    """Assign the tensors of a checkpoint to the tensors of a model.

    Raises:
        MHEError: a conversion of transformers does not accept the tensors' shapes.
    """
    # Every model of transformers has a prefix; the other libraries load by name.
    return _transformers_plan(model, shapes) if hasattr(model, "base_model_prefix") else _plan_by_name(model, shapes)


def _plan_by_name(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Loading:
    expected = model.state_dict()
    plan = Loading({}, {}, [])
    for name, target in renamed_on_load(model, shapes).items():
        if target in expected:
            plan.sources[target] = StoredTensor(name)
            plan.shapes[target] = tuple(shapes[name])
        else:
            plan.unused.append(name)
    return plan


def loaded_as(model: nn.Module) -> Callable[[str], str]:
    """What the tensor of a checkpoint is called in the model that loads it; tensors that have no taker too."""
    if not hasattr(model, "base_model_prefix"):
        return lambda name: renamed_on_load(model, [name])[name]

    @functools.cache
    def rules() -> tuple[_Rules, dict[str, Any]]:
        return _rules(model), model.state_dict()

    def renamed(name: str) -> str:
        found, expected = rules()
        return found.rename(name, expected)[0]

    return renamed


@dataclass(frozen=True)
class _Rules:
    """How transformers renames and converts what it loads into a model."""

    renamings: list[Any]
    converters: list[Any]
    prefix: str

    def rename(self, name: str, expected: dict[str, Any]) -> tuple[str, str | None]:
        """The name in the model, and the pattern of the conversion that takes the tensor, if one does."""
        from transformers.core_model_loading import rename_source_key

        found: tuple[str, str | None] = rename_source_key(name, self.renamings, self.converters, self.prefix, expected)
        if found[0] not in expected and name in expected:
            found = rename_source_key(name, [], [], self.prefix, expected)
        return found


def _rules(model: Any) -> _Rules:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    return _Rules(renamings, converters, model.base_model_prefix)


def _transformers_plan(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Loading:
    from transformers.core_model_loading import dot_natural_key

    rules = _rules(model)
    converter_of = {pattern: converter for converter in rules.converters for pattern in converter.source_patterns}
    expected = model.state_dict()

    plan = Loading({}, {}, [])
    conversions: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    for name in sorted(shapes, key=dot_natural_key):
        target, pattern = rules.rename(name, expected)
        if target not in expected:
            plan.unused.append(name)
        elif pattern is None:
            if target not in plan.sources:  # like the loader: the first tensor for a name is the one that counts
                plan.sources[target] = StoredTensor(name)
                plan.shapes[target] = tuple(shapes[name])
        else:
            conversions.setdefault(target, (converter_of[pattern], []))[1].append((pattern, name))

    for first_target, (converter, sources) in conversions.items():
        conversion = ConvertedTensor(converter, tuple(sources), first_target, first_target, model)
        try:
            made = conversion.make(lambda name: torch.empty(tuple(shapes[name]), device="meta"))
        except Exception as error:  # whatever a conversion makes of tensors that do not fit it
            stored = ", ".join(f"{name} {tuple(shapes[name])}" for name in conversion.names[:4])
            raise MHEError(f"transformers cannot make {first_target} from {stored}: {one_line(error)}") from error
        for target, value in made.items():
            plan.sources[target] = replace(conversion, target=target)
            plan.shapes[target] = tuple(value.shape)
    return plan

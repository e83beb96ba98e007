"""What a user holds in memory as the module that is analyzed, its layers named as in the checkpoint that it saves."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class Pipeline(Protocol):
    """A diffusers pipeline: not a module, but a set of components, some of which are."""

    @property
    def components(self) -> dict[str, Any]: ...


def as_module(model: object) -> nn.Module | None:
    """The module to analyze, None where there is none.

    A pipeline becomes its components that are modules, by their names. A `SentenceTransformer` whose transformer alone
    has weights becomes that transformer: its folder is that transformer's checkpoint too, and has one set of names.
    """
    if isinstance(model, nn.Module):
        return _transformer_alone(model) or model
    if _is(model, "DiffusionPipeline"):
        components: dict[str, Any] = getattr(model, "components", {})
        return nn.ModuleDict({name: part for name, part in components.items() if isinstance(part, nn.Module)})
    return None


def _transformer_alone(model: nn.Module) -> nn.Module | None:
    if not (isinstance(model, nn.Sequential) and type(model).__module__.startswith("sentence_transformers.")):
        return None
    for expected in (None, "PreTrainedModel"):
        children = [child for child in model.children() if next(child.parameters(), None) is not None]
        if len(children) != 1 or (expected and not _is(children[0], expected)):
            return None
        model = children[0]
    return model


def _is(model: object, name: str) -> bool:
    """Whether an object's class has a base of that name: the library it is of is not imported for the question."""
    return any(cls.__name__ == name for cls in type(model).__mro__)

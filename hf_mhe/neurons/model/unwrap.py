"""Names and modules as the user wrote them, under the wrappers that training puts around a model."""

from __future__ import annotations

from torch import nn

from hf_mhe.neurons.model.peft_layers import inside

# Modules that hold the wrapped module under this attribute, and so put it into every dotted name below them.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_TRANSPARENT = frozenset(WRAPPED)
# Whole models that hold the wrapped one as `module`; the last two are of packages that are not imported to ask.
_MODULES = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_MODULES_BY_NAME = ("DeepSpeedEngine", "AveragedModel")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own model under DistributedDataParallel, DataParallel, an AveragedModel, DeepSpeed or torch.compile.

    A `PeftModel` stays: its forward pass, its parameters' names and its prompt embeddings are its own.
    """
    while True:
        inner = next((model._modules[name] for name in _TRANSPARENT if model._modules.get(name) is not None), None)
        if inner is None and (
            isinstance(model, _MODULES) or any(cls.__name__ in _MODULES_BY_NAME for cls in type(model).__mro__)
        ):
            inner = model._modules["module"]
        if inner is None:
            return model
        model = inner


def is_transparent(module: nn.Module) -> bool:
    """Whether a module is torch.compile's, activation checkpointing's or FSDP1's wrapper around another."""
    return any(module._modules.get(name) is not None for name in _TRANSPARENT)


def inner_path(module: nn.Module) -> str | None:
    """The attribute path of the module that a wrapper inside a model stands for; None for all other modules."""
    transparent = (name for name in _TRANSPARENT if module._modules.get(name) is not None)
    return next(transparent, None) or inside(module)


def bare(module: nn.Module) -> nn.Module:
    """The module as it was before training and peft wrapped it: of an adapted layer the base layer."""
    while (path := inner_path(module)) is not None:
        module = module.get_submodule(path)
    return module


def clean(name: str) -> str:
    """A dotted name without the parts that training's wrappers added; peft's stay, as in its `named_parameters`."""
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def qualified(cls: type) -> str:
    """The dotted name of a class, by which the tables of module types know it."""
    return f"{cls.__module__}.{cls.__qualname__}"

"""Which library a config.json is of, and the model that the library builds from it."""

from __future__ import annotations

from typing import Any

from torch import nn


def build_skeleton(config: dict[str, Any] | None, declared: str | None = None) -> nn.Module | str:
    """The model on the meta device, ties made; or, where no installed library knows it, one sentence why.

    `declared` is the dotted name of the class that a pipeline's or a sentence-transformers folder's index gives for
    this part of it, which counts more than the config's own. Only classes inside the installed transformers,
    diffusers, timm and sentence-transformers are used: code from the checkpoint's repository is never run.

    Raises:
        MHEError: the library knows the class but cannot build it from this config.
    """
    if not config:
        return "no config.json: the modules are not known"
    if config.get("model_type"):
        from hf_mhe.neurons.checkpoint.skeleton.transformers_model import transformers_skeleton

        return transformers_skeleton(config, declared)
    if config.get("_class_name"):
        from hf_mhe.neurons.checkpoint.skeleton.diffusers_model import diffusers_skeleton

        return diffusers_skeleton(config)
    if config.get("architecture"):
        from hf_mhe.neurons.checkpoint.skeleton.timm_model import timm_skeleton

        return timm_skeleton(config)
    if declared is not None and declared.startswith("sentence_transformers."):
        from hf_mhe.neurons.checkpoint.skeleton.sentence_module import sentence_skeleton

        return sentence_skeleton(config, declared)
    return "config.json has no model_type: the modules are not known"

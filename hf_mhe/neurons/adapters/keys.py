"""Adapters in a checkpoint, known by the names of their tensors, whatever the file is called.

The names are those that peft, diffusers, kohya's sd-scripts and LyCORIS write. Every one of them holds the factors of
a change to a weight, and what a layer computes with is that weight changed: the factors alone have no neurons.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hf_mhe.errors import MHEError

# A component of a dotted name, or its start, and the method that has such tensors.
_COMPONENTS = (
    ("LoRA", r"lora_(A|B|down|up|mid|embedding_A|embedding_B|magnitude_vector|bias|E)\b|dora_scale\b"),
    ("LoRA", r"([a-z0-9_]+_)?lora\d*\.(up|down)\.|lora_(unet|te\d?|transformer|prior)_\w+\.(diff|diff_b)\b"),
    ("LoHa", r"hada_(w[12](_[ab])?|t[12])\b"),
    ("LoKr", r"lokr_(w[12](_[ab])?|t[12])\b"),
    ("IA3", r"ia3_l\b"),
    ("OFT", r"oft_(blocks|diag|R|r|s)\b"),
    ("BOFT", r"boft_(R|s)\b"),
    ("VeRA", r"(p?vera)_(lambda_[bd]|A|B)\b"),
    ("RandLoRA", r"randlora_\w+"),
    ("VB-LoRA", r"vblora_\w+"),
    ("FourierFT", r"(fourierft|waveft)_spectrum\b"),
    ("C3A", r"c3a_kernel\b"),
    ("HRA", r"hra_u\b"),
    ("HiRA", r"hira_(A|B|embedding_A|embedding_B)\b"),
    ("RoAd", r"road_(theta|alpha)\b"),
    ("MiSS", r"(miss|bone)_(block|\w+)\b"),
    ("SHiRA", r"shira_weight\b"),
    ("trainable tokens", r"trainable_tokens_\w+"),
    ("LoRA", r"(adamss|delora|glora|gralora|psoft|tinylora|unilora|frod)_\w+"),
)
_ADAPTERS = [(method, re.compile(rf"(^|\.)({pattern})")) for method, pattern in _COMPONENTS]
# Files of prompt learning hold these names alone, without the path of a module before them.
_PROMPTS = re.compile(r"^(prompt_embeddings|prefix_task_(rows|cols)|base_model\.prompt_encoder\..+)$")
_OF_A_PIPELINE = re.compile(r"\blora_(up|down)\b|lora\d*\.(up|down)\b|^(unet|transformer|text_encoder(_\d)?)\.|^lora_")
_PROMPT_LEARNING = "prompt learning"
_PEFT = "base_model.model."

_LOADED = "PeftModel.from_pretrained(base, FOLDER)"
PEFT_REMEDY = (
    f"merge it, {_LOADED}.merge_and_unload().save_pretrained(NEW_FOLDER), and analyze that; "
    "or analyze the PeftModel in memory"
)
"""How to make of an adapter of peft what can be analyzed."""


class UnmergedAdapterError(MHEError):
    """A checkpoint that is an adapter, or holds one beside the weights that it changes.

    `method` is what the adapter's method is called, `alone` says that no base weights are there, `of_pipeline` that it
    is named for a pipeline of diffusers.
    """

    def __init__(self, method: str, tensors: list[str], alone: bool) -> None:
        self.method = method
        self.alone = alone
        self.of_pipeline = alone and any(_OF_A_PIPELINE.search(name) for name in tensors)
        super().__init__(
            f"the checkpoint holds tensors of a {method} adapter (such as {tensors[0]}, {len(tensors)} in all), not "
            f"merged into its weights: {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """How to make of it what can be analyzed."""
        if self.of_pipeline:
            return (
                "merge it, pipeline.load_lora_weights(FILE), pipeline.fuse_lora(), "
                "pipeline.save_pretrained(NEW_FOLDER), and analyze that"
            )
        if self.method == _PROMPT_LEARNING:
            return "prompts change no weight: analyze the base model, or the PeftModel in memory"
        return PEFT_REMEDY if self.alone else PEFT_REMEDY.replace(_LOADED, "peft_model")


def adapter_method(name: str) -> str | None:
    """The method whose adapters have a tensor of that name; None for all other tensors."""
    if _PROMPTS.match(name):
        return _PROMPT_LEARNING
    return next((method for method, pattern in _ADAPTERS if pattern.search(name)), None)


def check_merged(candidates: Iterable[str], names: Iterable[str]) -> None:
    """Refuse a checkpoint in which `candidates`, those of its tensors that no known model takes, are an adapter's.

    `names` are all its tensors.

    Raises:
        UnmergedAdapterError: names the method and a tensor, and what to do.
    """
    found = [name for name in candidates if adapter_method(name) is not None]
    if not found:
        return
    of_adapter = set(found)
    rest = [name for name in names if name not in of_adapter]
    # peft saves the modules that it trained in full (`modules_to_save`) beside its matrices.
    saved_whole = all(name.startswith(_PEFT) and ".base_layer." not in name for name in rest)
    alone = saved_whole or all(_belongs_to_factors(name, of_adapter) for name in rest)
    methods = [adapter_method(name) or "" for name in found]
    method = max(dict.fromkeys(methods), key=methods.count)
    raise UnmergedAdapterError(method, found, alone or method == _PROMPT_LEARNING)


def _belongs_to_factors(name: str, found: set[str]) -> bool:
    """Whether a tensor is the scale of an adapter's factors, as kohya writes (`.alpha`), and no weight of a model."""
    return name.rpartition(".")[2] in ("alpha", "scale", "scalar", "rank", "bias", "b_norm", "w_norm")

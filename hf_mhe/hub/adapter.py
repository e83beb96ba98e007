"""Adapters of peft: whose base they are for, what loads both, and what they are measured as."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_mhe.analysis import EnergyReport, analyze
from hf_mhe.errors import MHEError
from hf_mhe.hub.paths import hub_id
from hf_mhe.json_files import read_json_object
from hf_mhe.text import one_line

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# peft's names of a task, and the ending of the class that loads a model for it.
_TASKS = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForSeq2SeqLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "",
}
# A classifier and an embedding that are trained whole, beside the adapter, under the names that peft knows.
_HEADS = re.compile(r"\.(classifier|score|qa_outputs)(\.out_proj|\.\d+)?\.weight$")
_EMBEDDINGS = re.compile(r"\.(embed_tokens|wte|word_embeddings|embed_in)\.weight$")
_NOTE = "measured on the weights that base and adapter make together; the SHA-256 of the adapter's file is "


@dataclass(frozen=True)
class Adapter:
    """What a card says of an adapter.

    `base` is the repo id of its base model, None where that was loaded from a folder; `base_class` the class of
    transformers that loads the base, None where there is none; `folder` where in the repository the adapter lies;
    `labels` how many classes the head has that is saved with it, `vocabulary` how many tokens the embedding;
    `revision` that of the base; `others` the folders of further adapters;
    `base_dtype` the dtype that the base had when it was measured; `as_published` whether it was as the Hub has it.
    """

    base: str | None = None
    base_class: str | None = None
    folder: str = ""
    labels: int | None = None
    vocabulary: int | None = None
    revision: str | None = None
    others: tuple[str, ...] = ()
    base_dtype: str | None = None
    as_published: bool = True


def find_adapter(folder: Path) -> Path | None:
    """The folder that an adapter lies in: this one, or the first inside it, where peft puts those with names."""
    if (folder / CONFIG).is_file():
        return folder
    return next((path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))), None)


def read_adapter(folder: Path, place: Path) -> Adapter:
    """The facts of the adapter in `place`, which is `folder` or in it.

    Raises:
        MHEError: its config is no JSON object.
    """
    config = read_json_object(place / CONFIG, "adapter config")
    mapping = config.get("auto_mapping") or {}
    task = config.get("task_type")
    base_class = f"AutoModel{_TASKS[task]}" if task in _TASKS else None
    if task is None and str(mapping.get("parent_library", "")).startswith("transformers."):
        base_class = mapping.get("base_model_class")
    others = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if path.parent != place)
    inside = "" if place == folder else place.name
    shapes = _shapes(place)
    return Adapter(
        base=hub_id(config.get("base_model_name_or_path")),
        base_class=base_class,
        folder=inside,
        labels=_rows(shapes, _HEADS),
        vocabulary=_rows(shapes, _EMBEDDINGS),
        revision=config.get("revision"),
        others=tuple(others),
    )


def of_model(model: Any, found: Adapter) -> Adapter:
    """What the model in memory adds to the facts of the adapter that it was saved as."""
    config, base = getattr(model, "config", None), model.get_base_model()
    active = model.active_adapters if isinstance(model.active_adapters, list) else model.active_adapters()
    quantized = getattr(config, "quantization_config", None) is not None
    dtype = next((value.dtype for value in base.parameters() if value.is_floating_point()), None)
    alone = [name if name != "default" else "" for name in active] == [found.folder]
    return replace(
        found,
        base_dtype=None if dtype is None or quantized else str(dtype).removeprefix("torch."),
        as_published=alone and quantized == _is_quantized_on_the_hub(found.base),
    )


def is_peft_model(model: Any) -> bool:
    """Whether a model in memory is saved as an adapter (a `PeftModel`, known by what it does)."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def measure_adapter(folder: Path, place: Path, earlier: EnergyReport | None, settings: dict[str, Any]) -> EnergyReport:
    """The energies of base and adapter together: measured, or those that were saved with these very weights.

    Raises:
        MHEError: there is no such report and the base cannot be loaded, or is named nowhere.
    """
    config = read_json_object(place / CONFIG, "adapter config")
    base = config.get("base_model_name_or_path")
    saved = earlier if earlier is not None and note(place) in earlier.notes else None
    if not base and saved is not None:
        return saved
    remedy = "push the model from memory, or pass after= with its report"
    if not base:
        raise MHEError(f"the adapter in {place} names no base model, so that it cannot be measured: {remedy}")
    try:
        model = _load(place, str(base), read_adapter(folder, place))
    except (OSError, ValueError, RuntimeError, LookupError, ImportError, AttributeError) as error:
        if saved is not None:
            return saved
        raise MHEError(
            f"the adapter in {place} cannot be measured: it does not load on its base {base}: "
            f"{one_line(error):.300}; {remedy}"
        ) from error
    return analyze(model, **settings)


def note(place: Path) -> str:
    """What a report says of the adapter that it is of, so that it is not taken for that of others."""
    digest = hashlib.sha256()
    path = place / WEIGHTS
    if path.is_file():
        with path.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return _NOTE + digest.hexdigest()


def with_note(report: EnergyReport, place: Path) -> tuple[str, ...]:
    """A report's notes with the one on its adapter."""
    return (*(line for line in report.notes if not line.startswith(_NOTE)), note(place))


def _load(place: Path, base: str, adapter: Adapter) -> Any:
    """The base with the adapter, loaded as the lines of the card load it."""
    import transformers
    from peft import PeftModel

    if adapter.base_class is None:
        raise ValueError("its config does not say of which class of transformers the base is")
    keywords = {} if adapter.labels is None else {"num_labels": adapter.labels, "ignore_mismatched_sizes": True}
    base_class = getattr(transformers, adapter.base_class)
    model = base_class.from_pretrained(base, revision=adapter.revision or "main", **keywords)
    if adapter.vocabulary is not None:
        model.resize_token_embeddings(adapter.vocabulary)
    return PeftModel.from_pretrained(model, str(place))


def _shapes(place: Path) -> dict[str, list[int]]:
    """The shapes of an adapter's tensors by name; none where `check_files` finds its file not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place / WEIGHTS, framework="pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def _rows(shapes: dict[str, list[int]], name: re.Pattern[str]) -> int | None:
    """How many rows a matrix has that is saved whole with an adapter; None where there is none of that name."""
    return next((shape[0] for key, shape in shapes.items() if len(shape) == 2 and name.search(key)), None)


def _is_quantized_on_the_hub(base: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(base, "config.json") if base else None
    return isinstance(path, str) and "quantization_config" in read_json_object(path)

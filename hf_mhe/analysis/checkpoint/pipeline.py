"""Checkpoints of several components: diffusers pipelines and sentence-transformers folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_mhe.analysis.checkpoint.file_names import is_pickle
from hf_mhe.analysis.checkpoint.location import Location, Place, check_inside, locate_component, names_inside
from hf_mhe.errors import MHEError
from hf_mhe.json_files import read_json, read_json_object
from hf_mhe.neurons.checkpoint.skeleton import holds_transformer, transformer_attribute
from hf_mhe.text import listed

PIPELINE_INDEX = "model_index.json"
MODULES_INDEX = "modules.json"
# Classes of components without weights, for the case that only the downloaded files are known.
_WITHOUT_WEIGHTS = (
    "Scheduler", "Tokenizer", "TokenizerFast", "Processor", "ProcessorFast", "Extractor",
    "Pooling", "Normalize", "Dropout",
)  # fmt: skip
_NOT_DOWNLOADED = "not in the Hub's cache, and the Hub cannot be asked"


def locate_pipeline(place: Place, source: str, index: Path) -> Location:
    """The components of a diffusers pipeline, by the names that its model_index.json gives them.

    Raises:
        MHEError: the index is damaged, or no component has weights that can be read.
    """
    content = read_json_object(index)
    parts: dict[str, tuple[str, str | None]] = {}
    left_out: dict[str, str] = {}
    for name, entry in content.items():
        # The other entries are options, and components that the pipeline goes without.
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            continue
        check_inside(name, f"{index} names component")
        if _has_weights(place, name) or f"{name}/config.json" in place.names():
            parts[name] = (name, _declared(*entry))
        elif not place.complete and not entry[1].endswith(_WITHOUT_WEIGHTS):
            left_out[name] = _NOT_DOWNLOADED
    return _assembled(place, source, parts, left_out)


def _declared(library: str, name: str) -> str | None:
    """The dotted name of a component's class; a pipeline's own classes lie in the pipeline's package in diffusers."""
    if library in ("diffusers", "transformers"):
        return f"{library}.{name}"
    return f"diffusers.pipelines.{library}.{name}" if library.isidentifier() else None


def locate_modules(place: Place, source: str, index: Path) -> Location | None:
    """The modules of a sentence-transformers folder, or None where modules.json is not sentence-transformers'.

    Where the transformer alone has weights, the folder is that transformer's checkpoint, and its layers go by their
    own names; beside a Dense layer all go by those that they have in the `SentenceTransformer`.

    Raises:
        MHEError: the index leads outside the checkpoint, or no module has weights that can be read.
    """
    content = read_json(index)
    if not (isinstance(content, list) and all(_is_module(entry) for entry in content)):
        return None
    parts: dict[str, tuple[str, str]] = {}
    left_out: dict[str, str] = {}
    for entry in content:
        name, folder, declared = str(entry["name"]), entry["path"].rstrip("/"), entry["type"]
        check_inside(folder, f"{index} names folder")
        if _has_weights(place, folder):
            parts[name] = (folder, declared)
        elif folder and any(part.startswith(f"{folder}/") and _is_weights(part) for part in place.names()):
            left_out[name] = f"{declared} keeps its weights in folders of its own: analyze the model in memory"
        elif not place.complete and not declared.endswith(_WITHOUT_WEIGHTS):
            left_out[name] = _NOT_DOWNLOADED
    alone = len(parts) == 1 and not left_out
    if not parts or (alone and all(holds_transformer(declared) for _, declared in parts.values())):
        folder = next((folder for folder, _ in parts.values()), "")
        return locate_component(place, source, folder)
    under = {name: holds_transformer(declared) for name, (_, declared) in parts.items()}
    held = transformer_attribute() if any(under.values()) else ""
    return _assembled(
        place, source, {f"{name}.{held}" if under[name] else name: part for name, part in parts.items()}, left_out
    )


def _is_module(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and "name" in entry
        and all(isinstance(entry.get(key), str) for key in ("path", "type"))
    )


def _has_weights(place: Place, folder: str) -> bool:
    return any(_is_weights(name) for name in names_inside(place, folder))


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or is_pickle(name.rpartition("/")[2])


def _assembled(
    place: Place, source: str, parts: Mapping[str, tuple[str, str | None]], left_out: dict[str, str]
) -> Location:
    components: dict[str, Location] = {}
    for name, (folder, declared) in parts.items():
        try:
            components[name] = locate_component(place, f"{source}/{folder}" if folder else source, folder, declared)
        except MHEError as error:
            left_out[name] = str(error)
    if not components:
        reasons = listed((f"{name}: {reason}" for name, reason in left_out.items()), 3)
        raise MHEError(f"{place.label} has no component with weights that can be read: {reasons or 'none has any'}")
    return Location(source, components=components, left_out=left_out)

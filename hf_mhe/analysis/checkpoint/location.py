"""One model's checkpoint in a folder, on disk or in a repository: its config.json and its safetensors files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hf_mhe.analysis.checkpoint.file_names import (
    ADAPTER,
    INDEX,
    SINGLE,
    is_index,
    is_pickle,
    pickle_refusal,
    weight_files,
)
from hf_mhe.errors import MHEError
from hf_mhe.json_files import read_json, read_json_object
from hf_mhe.neurons.adapters.keys import PEFT_REMEDY, UnmergedAdapterError
from hf_mhe.text import listed

_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Location:
    """Where a checkpoint's pieces lie on disk: those of one model, or `components` by the name that they go under.

    `weight_map` is the index's own map from tensor name to file name, None where there was no index; `declared` the
    class that a pipeline's index gives for this component; `left_out` says which components cannot be read, and why.
    `place` is where the files come from, and `folder` the one in it that they lie in.
    """

    source: str
    files: tuple[Path, ...] = ()
    config: dict[str, Any] | None = None
    index: Path | None = None
    weight_map: Mapping[str, str] | None = field(default=None, repr=False)
    revision: str | None = None
    declared: str | None = None
    components: Mapping[str, Location] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    place: Place | None = field(default=None, repr=False, compare=False)
    folder: str = ""

    def beside(self, name: str, folder: str | None = None) -> Path | None:
        """Another file of the folder, or of another folder of the place, on disk; None where there is none."""
        folder = self.folder if folder is None else folder
        if self.place is not None:
            return self.place.get(f"{folder}/{name}" if folder else name)
        path = self.files[0].parent / name if self.files else None
        return path if path is not None and path.is_file() else None


class Place(Protocol):
    """A folder with all that lies below it, on disk or in a repository."""

    @property
    def label(self) -> str:
        """What to call it in a message."""
        ...

    @property
    def complete(self) -> bool:
        """Whether `names` has all that is there, and not only what has been downloaded."""
        ...

    def get(self, name: str) -> Path | None:
        """The file of a name relative to the folder, on disk; None where there is none."""
        ...

    def names(self) -> list[str]:
        """The names of all files, relative to the folder, with slashes."""
        ...


def names_inside(place: Place, folder: str) -> list[str]:
    """The names of the files directly in a folder of a place ("" for the place itself)."""
    inside = f"{folder}/" if folder else ""
    below = (name.removeprefix(inside) for name in place.names() if name.startswith(inside))
    return sorted(name for name in below if "/" not in name)


def locate_component(place: Place, source: str, folder: str = "", declared: str | None = None) -> Location:
    """The model in a folder of a place ("" for the place itself).

    Raises:
        MHEError: no safetensors weights there, only an adapter, a pickle, a shard that the index names and that is
            missing, several files of which none is known to be the model.
    """

    def get(name: str) -> Path | None:
        return place.get(f"{folder}/{name}" if folder else name)

    where = f"{place.label}/{folder}" if folder else place.label
    config_path = get("config.json")
    if config_path is None and declared is not None and declared.startswith("sentence_transformers."):
        config_path = get(f"{declared.rpartition('.')[2].lower()}_config.json")  # lstm_config.json, cnn_config.json
    config = read_config(config_path) if config_path else None
    # The usual names are asked for first: listing a repository is one more request, and cannot be made offline.
    usual = next((name for name in (SINGLE, INDEX) if not folder and get(name) is not None), None)
    chosen = [usual] if usual else weight_files(names_inside(place, folder), where)
    if chosen in ([], [ADAPTER]):
        raise MHEError(_without_weights(place, folder, where, get(_ADAPTER_CONFIG)))
    if is_index(chosen[0]):
        found = indexed(_present(get, chosen[0], where), get, source, config, declared)
    else:
        found = Location(source, tuple(_present(get, name, where) for name in chosen), config, declared=declared)
    return replace(found, place=place, folder=folder)


def _present(get: Callable[[str], Path | None], name: str, where: str) -> Path:
    path = get(name)
    if path is None:
        raise MHEError(f"{where} is incomplete: {name} is not there")
    return path


def _without_weights(place: Place, folder: str, where: str, adapter_config: Path | None) -> str:
    """What to say of a folder without a model's weights: what it is instead, or what was looked for and found."""
    if not place.complete:
        return f"the weights of {where} are not in the Hub's cache, and the Hub cannot be asked for them"
    if adapter_config is not None:
        return adapter_refusal(where, adapter_config)
    top = names_inside(place, folder)
    if ADAPTER in top:
        return adapter_refusal(where, None)
    pickles = [name for name in top if is_pickle(name)]
    if pickles:
        return f"{where} has no safetensors weights, only {listed(pickles)}: " + pickle_refusal(pickles[0])
    prefix = f"{folder}/" if folder else ""
    nested = [name.removeprefix(prefix) for name in place.names() if name.startswith(prefix)]
    inside = {f"{name.rpartition('/')[0]}/" for name in nested if "/" in name and name.endswith(".safetensors")}
    if inside:
        return f"{where} keeps its weights in folders ({listed(sorted(inside))}): analyze one of these"
    return f"{where} has no weights: looked for {SINGLE}, {INDEX} and *.safetensors, found {listed(top) or 'nothing'}"


def adapter_refusal(where: str, adapter_config: Path | None, found: UnmergedAdapterError | None = None) -> str:
    """Why an adapter alone is not analyzed, and what to do instead, in one line; `found` where its keys show it."""
    config = read_config(adapter_config) or {} if adapter_config else {}
    base = config.get("base_model_name_or_path") or "its base model"
    method = config.get("peft_type") or (found.method if found is not None else "peft")
    remedy = found.remedy if found is not None else PEFT_REMEDY
    return f"{where} holds a {method} adapter of {base} and not the weights of a model: {remedy}"


def unmerged_refusal(location: Location, found: UnmergedAdapterError) -> str:
    """Why a checkpoint in which an adapter's tensors are is not analyzed, and what to do instead, in one line."""
    if not found.alone:
        return f"{location.source}: {found}"
    config = location.files[0].parent / _ADAPTER_CONFIG if location.files else None
    return adapter_refusal(location.source, config if config is not None and config.is_file() else None, found)


def indexed(
    index: Path,
    fetch: Callable[[str], Path | None],
    source: str,
    config: dict[str, Any] | None,
    declared: str | None = None,
) -> Location:
    """The checkpoint that an index file describes; `fetch` gives the local path of a shard, or None.

    Raises:
        MHEError: the index is no JSON index, names a file outside its folder, or a shard that is not there.
    """
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise MHEError(f"{index} is not a safetensors index: it has no weight_map from tensor names to files")
    shards = sorted({str(name) for name in weight_map.values()})
    files = []
    for shard in shards:
        check_inside(shard, f"{index} names shard")
        if is_pickle(shard):
            raise MHEError(pickle_refusal(f"{shard}, which {index} names,"))
        path = fetch(shard)
        if path is None or not path.is_file():
            raise MHEError(f"{source} is incomplete: {index.name} names shard {shard}, which is not there")
        files.append(path)
    by_name = {str(key): str(name) for key, name in weight_map.items()}
    return Location(source, tuple(files), config, index, by_name, declared=declared)


def check_inside(name: str, what: str) -> None:
    """Refuse a file name that leads out of the checkpoint: an index is somebody's data.

    Raises:
        MHEError: the name is absolute, or climbs.
    """
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise MHEError(f"{what} {name!r}, which lies outside the checkpoint")


def read_config(path: Path) -> dict[str, Any] | None:
    """The parsed config.json, or None where there is no such file.

    Raises:
        MHEError: the file is there and is not a JSON object.
    """
    return read_json_object(path) if path.is_file() else None

"""From what the user names, a folder, a file or a repository, to the pieces of its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_mhe.analysis.checkpoint.file_names import ADAPTER, is_index, is_pickle, pickle_refusal
from hf_mhe.analysis.checkpoint.location import (
    Location,
    Place,
    adapter_refusal,
    indexed,
    locate_component,
    read_config,
)
from hf_mhe.analysis.checkpoint.pipeline import MODULES_INDEX, PIPELINE_INDEX, locate_modules, locate_pipeline
from hf_mhe.errors import MHEError

# Deep enough for a component's folder, without reading a whole disk where the folder is not a checkpoint.
_DEPTH = 3


class LocalFolder:
    """A folder on disk."""

    complete = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = str(path)

    def get(self, name: str) -> Path | None:
        """The file of that name, where there is one."""
        path = self.path / name
        return path if path.is_file() else None

    def names(self) -> list[str]:
        """The names of the files in the folder and in the folders in it."""
        found: list[str] = []
        for folder, inside, files in os.walk(self.path):
            inner = Path(folder).relative_to(self.path)
            if len(inner.parts) + 1 >= _DEPTH:
                inside.clear()
            found += [(inner / file).as_posix() for file in files]
        return sorted(found)


def locate(place: Place, source: str) -> Location:
    """The checkpoint in a folder or a repository: one model, or the components of a pipeline.

    Raises:
        MHEError: no safetensors weights there, only an adapter, a pickle, a shard that the index names and that is
            missing, several files of which none is known to be the model.
    """
    config_path = place.get("config.json")
    config = read_config(config_path) if config_path else None
    modules = place.get(MODULES_INDEX)
    if modules is not None:
        found = locate_modules(place, source, modules)
        if found is not None:
            return found
    if not _names_a_model(config):
        index = place.get(PIPELINE_INDEX)
        if index is not None:
            return locate_pipeline(place, source, index)
    return locate_component(place, source)


def _names_a_model(config: dict[str, Any] | None) -> bool:
    return any((config or {}).get(key) for key in ("model_type", "_class_name", "architecture"))


def locate_path(path: Path, source: str) -> Location:
    """The checkpoint in a folder, or in one .safetensors file with the config.json beside it, if any.

    Raises:
        MHEError: as of `locate`.
    """
    if path.is_dir():
        return locate(LocalFolder(path), source)
    if is_index(path.name):
        return indexed(path, path.parent.joinpath, source, read_config(path.parent / "config.json"))
    if path.name == ADAPTER:
        config = path.parent / "adapter_config.json"
        raise MHEError(adapter_refusal(str(path), config if config.is_file() else None))
    if path.suffix == ".safetensors":
        return Location(source, (path,), read_config(path.parent / "config.json"))
    if is_pickle(path.name):
        raise MHEError(pickle_refusal(str(path)))
    raise MHEError(f"{path} is not a checkpoint: give a .safetensors file, a folder that holds one, or a Hub repo id")

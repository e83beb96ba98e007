"""Paths of the user's machine among the names of models: recognized, and kept out of what is published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_mhe.analysis.report.files import write_json
from hf_mhe.errors import MHEError
from hf_mhe.json_files import read_json

# Where a Hub cache keeps a repository: it says what the path of one of its files is a copy of.
_SNAPSHOT = re.compile(r"[\\/]models--([\w.-]+?)--([\w.-]+)[\\/]snapshots[\\/][0-9a-f]{7,40}[\\/]?$")
# Keys under which Hugging Face's libraries write where something was loaded from.
_ORIGIN = re.compile(r"(^|_)(name_or_path|path|file|dir|folder)$")
_LARGEST_CONFIG = 1 << 20


def is_local_path(name: str) -> bool:
    """Whether a model's name is a path of this machine, by its form or because it lies here; else it is a repo id."""
    if name.startswith(("file:", "~")) or "\\" in name or re.match(r"[A-Za-z]:", name):
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return Path(name).exists()


def hub_id(name: object) -> str | None:
    """The repo id that a model's name is, or that its path in a Hub cache is a copy of; None for any other path."""
    if not isinstance(name, str) or not name:
        return None
    cached = _SNAPSHOT.search(name)
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    return None if is_local_path(name) else name


def public_name(source: str) -> str:
    """A report's source without the folders of the machine that it lies on."""
    if not source or not (is_local_path(source) or source.startswith("file:")):
        return source
    return hub_id(source) or re.split(r"[\\/]", source.rstrip("\\/"))[-1] or "model"


def without_local_paths(files: dict[str, Path], target: Path, base: str | None) -> None:
    """Write those of a model's JSON files that name a path of this machine into `target`, without the path.

    A path in a Hub cache becomes its repo id, and an adapter's base becomes `base` where that is known and else null;
    any other key with a path goes.

    Args:
        files: paths in the repository, and the files that lie there.
        target: folder to write the changed ones into, under the same paths.
        base: repo id of the model that an adapter is for.
    """
    for name, path in files.items():
        if not name.endswith(".json") or path.stat().st_size > _LARGEST_CONFIG:
            continue
        try:
            content = read_json(path)
        except MHEError:
            continue  # no config: whoever reads it has to say what is wrong with it
        if isinstance(content, dict) and _clean(content, base):
            write_json(target / name, content)


def _clean(content: dict[str, Any], base: str | None) -> bool:
    """Take local paths out of a config, at any depth; whether there was one."""
    changed = False
    for key, value in list(content.items()):
        inner = value if isinstance(value, list) else [value]
        for item in inner:
            changed |= isinstance(item, dict) and _clean(item, base)
        if not isinstance(value, str) or not _ORIGIN.search(key) or not _is_origin(key, value):
            continue
        changed = True
        known = hub_id(value)
        if key == "base_model_name_or_path":
            content[key] = base or known
        elif known is not None:
            content[key] = known
        else:
            del content[key]
    return changed


def _is_origin(key: str, value: str) -> bool:
    """Whether a value is a path from outside: a relative one may be a file of the model's own, but not as a name."""
    if key.endswith("name_or_path"):
        return bool(value) and is_local_path(value)
    return bool(re.match(r"(/|~|file:|\\\\|[A-Za-z]:[\\/])", value))

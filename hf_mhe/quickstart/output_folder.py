"""The quickstart's output folder: filled in one move at the end, and never at the cost of somebody's files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_mhe.errors import MHEError
from hf_mhe.json_files import read_json_object
from hf_mhe.text import listed

MANIFEST = "quickstart.json"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise if filling `folder` could lose something.

    Nothing is lost in a folder that is new or empty, or whose every file an earlier quickstart wrote and nobody
    changed: its seed writes it again. With `overwrite`, files of the same names are replaced; all others stay in any
    case.

    Raises:
        MHEError: the path is a file, or the folder has other files and `overwrite` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise MHEError(f"output folder {folder} is a file; give the name of a folder")
    if overwrite:
        return
    own = set(_own_files(folder))
    others = sorted(str(file.relative_to(folder)) for file in _files(folder) if file not in own)
    if others:
        raise MHEError(
            f"output folder {folder} has files that quickstart did not write or that were changed since "
            f"({listed(others, 3)}); choose another --output-dir, or pass --overwrite to replace files of the same "
            "names"
        )


@contextmanager
def filled(folder: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Give an empty folder to write into, and on success move its content to `folder`; on failure, drop it.

    The move replaces what an earlier quickstart wrote, and adds `quickstart.json`: `settings` and the SHA-256 of every
    file, by which a later run knows them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the files are renamed into place and not copied.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
        yield Path(staging)
        written = sorted(_files(Path(staging)))
        names = [file.relative_to(staging) for file in written]
        digests = {name.as_posix(): _digest(file) for name, file in zip(names, written, strict=True)}
        for file in list(_own_files(folder)):
            file.unlink()
        for name, file in zip(names, written, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, folder / name)
        manifest = json.dumps({**settings, "files": digests}, indent=2) + "\n"
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else iter(())


def _own_files(folder: Path) -> Iterator[Path]:
    """The files in `folder` that an earlier quickstart wrote and nobody changed, its manifest included."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    try:
        digests = read_json_object(manifest)["files"]
    except (MHEError, KeyError, TypeError):
        return  # not a manifest of ours: nothing here is known to be ours
    yield manifest
    for file in _files(folder):
        name = file.relative_to(folder).as_posix()
        if name in digests and digests[name] == _digest(file):
            yield file


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

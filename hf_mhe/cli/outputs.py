"""Checks the files that a command was asked to write, before the long work that fills them begins."""

from __future__ import annotations

import os
from pathlib import Path

from hf_mhe.errors import MHEError
from hf_mhe.extras import require_extra

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")


def check_outputs(**files: Path | None) -> None:
    """Raise unless every given file can be written; the keyword is the option's name (`json` for `--json`).

    Raises:
        MHEError: the folder is not there or may not be written to, the path is a folder, two options name one file, a
            figure's suffix names no format, or matplotlib is missing for it.
    """
    seen: dict[Path, str] = {}
    for option, file in files.items():
        if file is None:
            continue
        folder = file.parent
        if not folder.is_dir():
            raise MHEError(f"--{option} {file}: the folder {folder} does not exist; create it first")
        if file.is_dir():
            raise MHEError(f"--{option} {file}: is a folder; give the name of a file")
        if not os.access(file if file.exists() else folder, os.W_OK):
            raise MHEError(f"--{option} {file}: may not be written; check the permissions")
        if option == "plot" and file.suffix.lower() not in FIGURE_SUFFIXES:
            raise MHEError(f"--plot {file}: a figure's name ends in one of {', '.join(FIGURE_SUFFIXES)}")
        if option == "plot":
            require_extra("--plot", "plots", "matplotlib")
        other = seen.setdefault(file.resolve(), option)
        if other != option:
            raise MHEError(f"--{other} and --{option} both name {file}; give each its own file")

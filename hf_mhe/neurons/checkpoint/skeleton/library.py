"""Importing a library that may not be installed, or may be installed and broken."""

from __future__ import annotations

import importlib
from types import ModuleType

from hf_mhe.errors import MHEError
from hf_mhe.text import one_line


def library(name: str, wanted_by: str) -> ModuleType | str:
    """The library, imported; or one sentence that names the package to install."""
    package = name.partition(".")[0].replace("_", "-")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            return f"{wanted_by} is of {package}, which cannot be imported: {one_line(error)}"
        return f"{wanted_by} is of {package}, which is not installed: pip install {package}"
    except Exception as error:  # a broken installation fails in any way (a compiled part for another torch, say)
        return f"{wanted_by} is of {package}, which cannot be imported: {one_line(error)}"


def cannot_build(package: str, what: str, error: Exception) -> MHEError:
    """The error for a config from which a library cannot build the class that it names."""
    return MHEError(f"config.json: {package} cannot build {what} from it: {type(error).__name__}: {one_line(error)}")

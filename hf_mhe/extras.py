"""Packages of an extra of this one: asked for where they are needed, by a name that pip knows."""

from __future__ import annotations

import importlib.util

from hf_mhe.errors import MHEError

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "sentence_transformers": "sentence-transformers"}


def missing_extra(what: str, extra: str, *packages: str) -> str | None:
    """Why `what` cannot be done, and what to install; None where all packages of `extra` are there."""
    absent = [_DISTRIBUTIONS.get(name, name) for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    verb = "is" if len(absent) == 1 else "are"
    return f"{what} needs {', '.join(absent)}, which {verb} not installed: pip install 'hf-mhe[{extra}]'"


def require_extra(what: str, extra: str, *packages: str) -> None:
    """Raise where a package of `extra` is not installed.

    Raises:
        MHEError: a package of `extra` is not installed.
    """
    reason = missing_extra(what, extra, *packages)
    if reason is not None:
        raise MHEError(reason)

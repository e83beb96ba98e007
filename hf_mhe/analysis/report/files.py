"""Writing a report's files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hf_mhe.errors import MHEError


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write a file so that it is never seen half-written: beside its place, then renamed into it. Makes its folder.

    Raises:
        MHEError: the place cannot be written to.
    """
    target = Path(path).expanduser()
    # A name of bytes that are no characters keeps them as an escape, which JSON reads as it was.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        # mkstemp makes a file for its owner only; give it the mode that a plain open() would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise MHEError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return target


def write_json(path: str | os.PathLike[str], content: dict[str, Any]) -> Path:
    """Write strict JSON (a NaN or an infinity is a bug here, not a token), keys in the order given."""
    return write_atomic(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

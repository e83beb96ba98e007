"""Writing to stdout and stderr so that no character, and no reader who has gone, ends a run with the wrong status.

Note [Characters that a stream cannot carry]
A path may hold any character, and on Linux bytes that are none; names of layers come from a stranger's file. A stream
whose encoding has no such character (`PYTHONIOENCODING=cp1252`, `LANG=C`) gets its escape (`\\u5c42`), which loses
nothing and can be searched for. Control characters, also the invisible ones that reverse the direction of a line, are
escaped everywhere: they would break a line in two or give orders to the terminal. Rejected: `?` in their place, by
which two names become one.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from hf_mhe.text import escaped


def let_any_text_through() -> None:
    """Make stdout and stderr write every text, each character that they cannot carry as its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def shown(text: str, stream: TextIO | None) -> str:
    """One line of text as it will stand on a stream: see Note [Characters that a stream cannot carry]."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return escaped(text).encode(encoding, "backslashreplace").decode(encoding)


def carries_unicode(stream: TextIO | None) -> bool:
    """Whether a stream's encoding has every character there is."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def say(text: str) -> None:
    """Write one line to stderr. Where nobody can read it, it is dropped: a remark must not change a result."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(shown(text, sys.stderr) + "\n")
        sys.stderr.flush()
    except OSError:
        to_nowhere(sys.stderr)


def to_nowhere(stream: TextIO | None) -> None:
    """Point a stream that cannot be written to at the null device: Python flushes it once more at exit, and would
    complain there, with an exit status of its own."""
    try:
        descriptor = stream.fileno() if stream is not None else None
    except (OSError, ValueError):  # not a file, or closed
        return
    if descriptor is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)

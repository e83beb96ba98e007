"""The one reader of JSON: every file, header and piece of metadata that hf_mhe parses goes through here.

Note [Depth]. Python's parser gives up with a RecursionError somewhere past a thousand brackets, and what it still
accepts makes the next recursion fail instead: a copy of a config, the text of an error message. No config, index or
report nests more than a dozen levels, so anything deeper than `_DEEPEST` is refused here. Rejected: to raise the
recursion limit, which trades a clear error for a crash of the process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hf_mhe.errors import MHEError
from hf_mhe.stand_ins import stand_in

_DEEPEST = 100  # Note [Depth]


def parse_json(text: str | bytes, what: str, *, unique: bool = False) -> Any:
    """What a JSON text says; `what` names it in errors. A byte-order mark before it is let pass.

    With `unique`, an object that has a key twice is refused: of two entries of a file's header, each could be the one
    that was meant. Elsewhere the last counts, as for every other reader of such files.

    Raises:
        MHEError: not UTF-8, no JSON, nested deeper than 100 levels, a number of more digits than Python converts, or a
            repeated key.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        content = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique if unique else None)
    except RecursionError as error:
        raise _too_deep(what) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise MHEError(f"{what} is not JSON: {where} is not valid JSON ({error.msg})") from error
    except ValueError as error:  # no UTF-8, a repeated key, an integer of thousands of digits
        raise MHEError(f"{what} is not JSON: {error}") from error
    if _deeper_than(content, _DEEPEST):
        raise _too_deep(what)
    return content


def parse_json_object(text: str | bytes, what: str, *, unique: bool = False) -> dict[str, Any]:
    """The JSON object that a text says; see `parse_json`.

    Raises:
        MHEError: as of `parse_json`, or the text says something else than an object.
    """
    content = parse_json(text, what, unique=unique)
    if not isinstance(content, dict):
        raise MHEError(f"{what} holds a {type(content).__name__}, not an object")
    return content


def read_json(path: str | os.PathLike[str], what: str = "") -> Any:
    """What a JSON file says; `what` stands before the path in errors ("energy report").

    Raises:
        MHEError: the file cannot be read, is a stand-in for another (a Git LFS pointer, a web page), or as of
            `parse_json`.
    """
    named = f"{what} {os.fspath(path)}".lstrip()
    try:
        raw = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise MHEError(f"{named} cannot be read: {error.strerror or error}") from error
    other = stand_in(raw)
    if other is not None:
        raise MHEError(f"{named} is not JSON: it is {other}")
    return parse_json(raw, named)


def read_json_object(path: str | os.PathLike[str], what: str = "") -> dict[str, Any]:
    """The JSON object that a file says; see `read_json`.

    Raises:
        MHEError: as of `read_json`, or the file says something else than an object.
    """
    content = read_json(path, what)
    if not isinstance(content, dict):
        named = f"{what} {os.fspath(path)}".lstrip()
        raise MHEError(f"{named} holds a {type(content).__name__}, not a JSON object")
    return content


def _too_deep(what: str) -> MHEError:
    return MHEError(
        f"{what} is JSON nested deeper than {_DEEPEST} levels, which no file of a model is: it is damaged, or was "
        "made to do damage"
    )


def _deeper_than(content: Any, levels: int) -> bool:
    """Whether lists and objects lie in each other more than `levels` deep; found level by level, without recursion."""
    level = [content] if isinstance(content, (dict, list)) else []
    for _ in range(levels):
        inner = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return content

"""Rows of a report as JSON values, and back, by the types that their fields are annotated with."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from hf_mhe.errors import MHEError


def to_json(value: Any) -> Any:
    """The value as JSON types: tuples as lists, dataclasses as objects, an infinite or undefined number as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(value: Any, kind: Any, where: str) -> Any:
    """The value of which `to_json` made `value`, of the annotated type `kind`; `where` names it in an error.

    Raises:
        MHEError: it is of another type.
    """
    wanted = f"{where} = {value!r:.80}; {_described(kind)} is right"
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for option in options:
        found = _read(value, option, where)
        if found is not _NO:
            return found
    raise MHEError(wanted)


_NO = object()


def _read(value: Any, kind: Any, where: str) -> Any:
    """The value as one that is of `kind`; `_NO` where it is not."""
    if kind is type(None):
        return None if value is None else _NO
    if kind is float:
        return float(value) if _is_number(value) else _NO
    if kind is int:
        return value if _is_number(value) and isinstance(value, int) else _NO
    if kind in (str, bool):
        return value if isinstance(value, kind) else _NO
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):  # a NamedTuple
        entries = _read(value, tuple[tuple(_hints(kind).values())], where)  # type: ignore[misc]
        return _NO if entries is _NO else kind(*entries)
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value if value in of else _NO
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [of[0]] * len(value) if of[-1] is Ellipsis else list(of)
        if len(kinds) == len(value):
            return tuple(from_json(entry, each, where) for entry, each in zip(value, kinds, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {_key(key, of[0], where): from_json(entry, of[1], f"{where}[{key!r}]") for key, entry in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return read_fields(kind, value, where)
    return _NO


def read_fields(kind: type, content: Mapping[str, Any], where: str, null: Mapping[str, float] | None = None) -> Any:
    """The dataclass of which `to_json` made `content`; keys that it does not know are left out.

    `null` is what None stands for in fields that cannot be None, and in those that are left out where they are.

    Raises:
        MHEError: a field without a default is missing, or a value has the wrong type.
    """
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        if item.name in content:
            value = content[item.name]
            if value is None and null is not None and item.name in null:
                values[item.name] = null[item.name]
            else:
                values[item.name] = from_json(value, hints[item.name], f"{where} has {item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise MHEError(f"{where} has no {item.name!r}")
    return kind(**values)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _key(key: str, kind: type, where: str) -> Any:
    if kind is str:
        return key
    try:
        return kind(key)
    except ValueError as error:
        raise MHEError(f"{where} has the key {key!r}; {_described(kind)} is right") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _described(kind: Any) -> str:
    if isinstance(kind, type) and not typing.get_args(kind):
        return f"{'an' if kind is int else 'a'} {kind.__name__}"
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", f"a {kind}")  # without the modules of its parts

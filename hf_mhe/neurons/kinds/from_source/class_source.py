"""The source of a module's class, read and never run."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from torch import nn


def methods(cls: type[nn.Module], mentions: re.Pattern[str] | None = None) -> Iterator[ast.FunctionDef]:
    """The methods of a class and of those above it that are not overridden; none where there is no source.

    With `mentions`, only of the classes that define a forward, and nothing is parsed unless the text of one matches.
    """
    family = [
        above
        for above in cls.__mro__
        if issubclass(above, nn.Module) and not above.__module__.startswith("torch.nn.modules.")
    ]
    if mentions is not None:
        texts = {above: _text(above) or _file(above.__module__) for above in family}
        family = [above for above, text in texts.items() if "def forward(" in text]
        if not any(mentions.search(texts[above]) for above in family):
            return
    seen: set[str] = set()
    for above in family:
        for node in _body(above):
            if isinstance(node, ast.FunctionDef) and node.args.args and node.name not in seen:
                seen.add(node.name)
                yield node


def _body(cls: type) -> Iterable[ast.stmt]:
    """The statements of a class; none where there is no source: made in a shell, compiled, or by a function."""
    try:
        (found,) = ast.parse(_text(cls)).body
    except (SyntaxError, ValueError):  # no unit by its indentation: the whole file is read
        classes = _classes(cls.__module__)
        return classes[cls.__qualname__].body if cls.__qualname__ in classes else ()
    return found.body if isinstance(found, ast.ClassDef) else ()


def _text(cls: type) -> str:
    """The text of a class at the outermost level of its file, much faster to parse than all of it; else "".

    A line that begins with no space ends it, also one inside of a string, which leaves a text that does not parse.
    """
    found = re.findall(
        rf"^class {re.escape(cls.__qualname__)}\b.*\n(?:[ \t)\]#].*\n|\n)*", _file(cls.__module__), re.M
    )
    return found[-1] if found else ""


def _file(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return ""


@lru_cache(maxsize=4)  # of the few files that one model's classes are in: a tree takes megabytes
def _classes(module: str) -> Mapping[str, ast.ClassDef]:
    """Qualified name -> class, for all classes in a module's file, wherever they are."""
    found: dict[str, ast.ClassDef] = {}

    def gather(body: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(body):
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = node
                gather(node, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                gather(node, f"{prefix}{node.name}.<locals>.")
            elif isinstance(node, ast.stmt):
                gather(node, prefix)

    try:
        tree = ast.parse(_file(module))
    except SyntaxError:
        return {}
    gather(tree, "")
    return found

"""The modules of custom code in a model's folder: which its configs name, and what these read. No code is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any


def modules_named_by(contents: Mapping[str, Any]) -> list[str]:
    """The files of the modules that a folder's configs name, relative to the folder, whether they are there or not.

    `auto_map` and `custom_pipelines` name `module.Class`, sentence-transformers' modules.json likewise under `type`,
    and a pipeline's index `[module, Class]`. A module of another repository (`owner/name--module.Class`) is none here.
    """
    found = []
    for file, content in contents.items():
        if file == "model_index.json" and isinstance(content, dict):
            for part, entry in content.items():
                if isinstance(entry, list) and entry and isinstance(entry[0], str):
                    module = f"{entry[0].replace('.', '/')}.py"
                    found.append(module if part == "_class_name" else f"{part}/{module}")
        for name in _class_names(file, content):
            if "--" not in name and "." in name:
                found.append(f"{name.rpartition('.')[0].replace('.', '/')}.py")
    return list(dict.fromkeys(found))


def _class_names(file: str, content: Any) -> Iterator[str]:
    if file == "modules.json":
        entries = content if isinstance(content, list) else []
        yield from (str(entry["type"]) for entry in entries if isinstance(entry, dict) and "type" in entry)
    elif isinstance(content, dict):
        yield from _strings(content.get("types") if file == "router_config.json" else None)
        yield from _strings(content.get("auto_map"))
        yield from _strings(content.get("custom_pipelines"))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def read_by_module(folder: Path, module: str) -> list[str]:
    """The files beside a module that it needs: those it imports relatively, and those that its strings name.

    A tokenizer of custom code has the names of its vocabulary files in a dict of strings, for one. `module` and the
    result are relative to the folder; files that are not there are left away.
    """
    try:
        tree = ast.parse((folder / module).read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return []  # nobody can import it
    here = PurePosixPath(module).parent
    wanted: list[PurePosixPath] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            wanted += _imported(node, here)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_file_name(node.value):
            wanted.append(here / node.value)
    return [path.as_posix() for path in dict.fromkeys(wanted) if (folder / path).is_file()]


def _imported(node: ast.ImportFrom, here: PurePosixPath) -> Iterator[PurePosixPath]:
    """The files that `from .module import name` may stand for: the module, a package, or a module `name` in it."""
    for _ in range(node.level - 1):
        here = here.parent
    base = here.joinpath(*(node.module or "").split(".")) if node.module else here
    if node.module:
        yield base.with_name(f"{base.name}.py")
    yield base / "__init__.py"
    for name in node.names:
        yield base / f"{name.name}.py"
        yield base / name.name / "__init__.py"


def _is_file_name(text: str) -> bool:
    return len(text) < 200 and "." in text and text.isprintable() and PurePosixPath(text).suffix not in ("", ".py")

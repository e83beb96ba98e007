"""What imports what in the package, read from its source: nothing is imported for the question."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_mhe"

When = Literal["loading", "calling", "checking"]
"""Whether an import runs as the module loads, inside a function, or under TYPE_CHECKING and never."""


@dataclass(frozen=True, order=True)
class Arrow:
    """One import of one module by another."""

    source: str
    target: str
    when: When


@cache
def modules() -> Mapping[str, Path]:
    """The package's modules by their dotted names."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        *folders, name = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(folders if name == "__init__" else (*folders, name))] = path
    return found


@cache
def arrows() -> tuple[Arrow, ...]:
    """Every import of one module of the package by another."""
    return tuple(sorted({arrow for name, path in modules().items() for arrow in _of(name, path)}))


def _of(name: str, path: Path) -> Iterator[Arrow]:
    for node, when in _imports(ast.parse(path.read_text(encoding="utf-8")).body, "loading"):
        for target in _targets(node):
            if target in modules() and target != name:
                yield Arrow(name, target, when)


def _imports(body: Iterable[ast.AST], when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, when
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.body, "checking")
            yield from _imports(node.orelse, when)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and when == "loading":
            yield from _imports(ast.iter_child_nodes(node), "calling")
        else:
            yield from _imports(ast.iter_child_nodes(node), when)


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules that an import names; of `from a import b` a module `a.b`, or else `a`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert not node.level, f"a relative import of {node.module}"
    for alias in node.names:
        inner = f"{node.module}.{alias.name}"
        yield inner if inner in modules() else str(node.module)


def circles(among: Iterable[Arrow]) -> list[tuple[str, ...]]:
    """The sets of modules that reach each other, each sorted."""
    outgoing: dict[str, set[str]] = {}
    for arrow in among:
        outgoing.setdefault(arrow.source, set()).add(arrow.target)
    reached = {name: _reached(name, outgoing) for name in outgoing}
    return sorted(
        {
            tuple(sorted(other for other in found if name in reached.get(other, ())))
            for name, found in reached.items()
            if name in found
        }
    )


def _reached(name: str, outgoing: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [name]
    while left:
        for target in outgoing.get(left.pop(), ()):
            if target not in found:
                found.add(target)
                left.append(target)
    return found

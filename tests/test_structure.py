"""The layout of the package: rooms import downwards, nothing in a circle, a file's name says where one is."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.structure import PACKAGE, Arrow, When, arrows, circles, modules

FLOOR = {
    "energy": 1,
    "neurons": 2,
    "analysis": 3,
    "training": 3,
    "hub": 4,
    "integrations": 4,
    "quickstart": 5,
    "cli": 6,
}
"""The rooms by floor. Files beside them are the ground floor, 0."""

SAME_NAME = {
    "app.py": "the page of a measurement on the Hub is called so; the program's is its own",
    "compare.py": "a command goes by the name of the function that it calls",
    "finite.py": "training's says that a penalty is not finite, the hub's that weights are not",
}
"""Names that two files have, each with the reason why a traceback is clear all the same."""


def _when(*whens: When) -> list[Arrow]:
    return [arrow for arrow in arrows() if arrow.when in whens]


def _room(module: str) -> str:
    """The room of a module, "" for the ground floor."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in FLOOR else ""


def test_every_folder_of_the_package_has_a_floor() -> None:
    """If this failed, a new room would lie on no floor, and its imports would not be looked at."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(FLOOR)
    assert len(arrows()) > 500
    assert {arrow.when for arrow in arrows()} == {"loading", "calling", "checking"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """If this failed, no file of the circle could be read alone, and imports would depend on order."""
    assert circles(arrows()) == []


def test_rooms_import_downwards_only() -> None:
    """If this failed, no room could be changed without knowing those that are built on it."""
    upwards = [
        arrow
        for arrow in arrows()
        # hf_mhe itself is the door to all rooms, which are imported when one of their names is asked for.
        if arrow.source != "hf_mhe" and _room(arrow.source) != _room(arrow.target)
        if FLOOR.get(_room(arrow.target), 0) >= FLOOR.get(_room(arrow.source), 0)
    ]
    assert upwards == []


def test_importing_the_package_imports_no_room() -> None:
    """If this failed, `import hf_mhe` would cost the import of torch or of transformers."""
    loaded = {arrow.target for arrow in _when("loading") if arrow.source == "hf_mhe"}
    assert {_room(module) for module in loaded} <= {""}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_init_has_logic(path: Path) -> None:
    """If this failed, code would lie where nobody looks: in a file that every tab and traceback calls `__init__`."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in body)
    others = [ast.unparse(node).splitlines()[0] for node in body if not _belongs(node, lazy)]
    assert not others, others


def _belongs(node: ast.stmt, lazy: bool) -> bool:
    """Whether a statement says what lives in a folder: docstring, imports, `__all__`, names imported on first use."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        (target,) = node.targets
        name = target.id if isinstance(target, ast.Name) else ""
        table = lazy and isinstance(node.value, ast.Dict) and all(map(_is_text, node.value.values))
        return name == "__all__" or table
    if isinstance(node, ast.FunctionDef):
        return lazy and node.name in ("__getattr__", "__dir__")
    return lazy and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_one_file_knows_which_engines_there_are() -> None:
    """If this failed, a new engine would have to be named in many files, and be forgotten in one of them."""
    engines = {f"hf_mhe.training.engines.{name}" for name in ("ddp", "deepspeed.engine", "dtensor.dtensors")}
    assert engines <= modules().keys()
    asking = {arrow.source for arrow in arrows() if arrow.target in engines}
    assert asking == {"hf_mhe.training.engines.engine_of"}


def test_no_two_files_have_one_name() -> None:
    """If this failed, an editor's tab, a traceback and a search would name two files, and one would open the other."""
    counted = Counter(path.name for path in modules().values() if path.name not in ("__init__.py", "__main__.py"))
    assert {name for name, count in counted.items() if count > 1} <= set(SAME_NAME)


def test_a_circle_and_an_arrow_up_are_seen() -> None:
    """If this failed, the tests above would hold of any package."""
    made = [
        Arrow("a", "b", "loading"),
        Arrow("b", "c", "calling"),
        Arrow("c", "a", "loading"),
        Arrow("c", "d", "loading"),
    ]
    assert circles(made) == [("a", "b", "c")]
    assert circles(arrow for arrow in made if arrow.when == "loading") == []
    assert Arrow("hf_mhe.neurons.group", "hf_mhe.neurons.layout", "loading") in arrows()

"""What the test suite promises about itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slow import LONG

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"
PAGES = ("CONTRIBUTING.md", "AGENTS.md", "tests/README.md")


def test_whoever_may_be_skipped_for_a_package_is_run_with_it() -> None:
    """If this failed, CI would skip a test twice: without the package, and where the package is installed."""
    project = PROJECT.read_text(encoding="utf-8")
    everybody = project[project.index("\ndependencies = [") :].partition("\n]")[0]
    everybody += project[project.index("\ntest = [") :].partition("\n]")[0]
    everybody += project[project.index("\nquickstart = [") :].partition("]\n")[0]
    checked = 0
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        packages = re.findall(r'importorskip\("(\w+)', text)
        if any(package.replace("_", "-") not in everybody for package in packages):
            assert re.search(r"mark\.(integrations|engines|recipes)\b", text), f"{path}: mark it"
            checked += 1
    assert checked > 5


def quoted(page: str) -> list[str]:
    """What a page sets in backticks or in a block of code, word by word."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [word for piece in (*blocks, *spans) for word in piece.split()]


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_a_page_exists(page: str) -> None:
    """If this failed, whoever comes after would be sent to a file that is not there."""
    tops = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())
    named = {word for word in quoted(page) if word.startswith(tops) or re.fullmatch(r"[\w.]+\.(md|toml|py)", word)}
    missing = sorted(path for path in named if "<" not in path and not (ROOT / path).exists())
    assert not missing
    assert len(named) > 2


@pytest.mark.parametrize("page", PAGES)
def test_every_marker_of_a_page_is_registered(page: str) -> None:
    """If this failed, a command of the page would select nothing, or stop."""
    text = (ROOT / page).read_text(encoding="utf-8")
    selected = re.findall(r'-m (?:"not )?(\w+)"?', text.replace("python -m", "python").replace("python3 -m", "python"))
    assert selected
    assert set(selected) <= registered()


def test_the_default_run_leaves_out_what_is_long() -> None:
    """If this failed, a newcomer would wait for the whole matrix, or nobody would ever run it."""
    options = re.search(r"^addopts = .*", PROJECT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert options is not None
    assert set(re.findall(r"not (\w+)", options[0])) == LONG
    assert registered() >= LONG
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {name for name in LONG if re.search(rf"-m \"?{name}\b", ci)} == LONG


def registered() -> set[str]:
    """The markers of pyproject.toml."""
    project = PROJECT.read_text(encoding="utf-8")
    markers = project[project.index("\nmarkers = [") :].partition("\n]")[0]
    return set(re.findall(r'^    "(\w+)[(:]', markers, flags=re.MULTILINE))


MANY = """
import pytest

@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("case", [0, 1, 2, 3, pytest.param(4, marks=pytest.mark.slow), 5, 6, 7, 8, 9])
def test_property(case):
    pass

@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("case", [0])
def test_of_one(case):
    pass
"""


def test_of_many_cases_the_first_the_last_and_those_between_stay_quick(tmp_path: Path) -> None:
    """If this failed, the quick loop would lose a property whole, or wait for all cases of it."""
    (tmp_path / "test_many.py").write_text(MANY, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: s\n    quick_cases: q\n", encoding="utf-8")
    options = ["-q", "--collect-only", "-p", "tests.slow", "-p", "no:cacheprovider", "-m", "not slow", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.findall(r"::(\w+\[\d+\])", run.stdout) == [
        "test_property[0]",
        "test_property[5]",
        "test_property[9]",
        "test_of_one[0]",
    ]


def test_no_test_of_training_imports_another() -> None:
    """If this failed, a change to one test file would break another, and its imports would be everybody's."""
    importing = re.compile(r"^\s*(?:from|import) tests\.training\.test_", flags=re.MULTILINE)
    found = [path for path in (ROOT / "tests").rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))]
    assert not found


IMPORTED_EXTRA = re.compile(
    r"^ *(?:from|import) (bitsandbytes|compressed_tensors|deepspeed|diffusers|optuna|sentence_transformers|tensorboard"
    r"|timm|torchao|trl)\b",
    flags=re.MULTILINE,
)


def test_a_package_that_a_newcomer_need_not_have_is_asked_for_first() -> None:
    """If this failed, the README's test command would end in an ImportError wherever the extras are not installed."""
    checked = 0
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        for package in set(IMPORTED_EXTRA.findall(text)):
            assert f'importorskip("{package}' in text or "mark.engines" in text, f"{path} imports {package}: ask first"
            checked += 1
    assert checked > 5

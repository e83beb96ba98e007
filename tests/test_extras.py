"""What the package needs of others: declared, imported where it is needed, and named where it is missing."""

from __future__ import annotations

import ast
import importlib
import logging
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

import hf_mhe
from hf_mhe.analysis import EnergyReport
from hf_mhe.cli.outputs import check_outputs
from hf_mhe.errors import MHEError
from hf_mhe.hub import save_for_hub
from hf_mhe.quickstart import run

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
NEEDS_MATPLOTLIB = r"needs matplotlib, which is not installed: pip install 'hf-mhe\[plots\]'"


def declared(key: str) -> set[str]:
    """The distributions of a list of pyproject.toml."""
    listed = PROJECT[PROJECT.index(f"\n{key} = [") :].partition("]\n")[0]
    return {normal(name) for name in re.findall(r'"([\w-]+)[^"]*"', listed)}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def imports(body: list[ast.stmt], inside: bool) -> Iterator[str]:
    """Packages imported when a module is; with `inside`, also those that its functions import."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imports(node.orelse, inside)
        elif inside or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for field in ("body", "orelse", "finalbody"):
                yield from imports(getattr(node, field, []), inside)


def distributions(*, inside: bool) -> set[str]:
    names = packages_distributions()
    found: set[str] = set()
    for path in (ROOT / "hf_mhe").rglob("*.py"):
        # Imported on a GPU only, where torch brings triton along; and by evaluate, which is then there.
        if {"triton_walk", "measurement"} & set(path.parts):
            continue
        for package in imports(ast.parse(path.read_text(encoding="utf-8")).body, inside):
            if package not in sys.stdlib_module_names and package not in ("hf_mhe", "typing_extensions"):
                found.add(normal(names.get(package, [package])[0]))
    return found


@pytest.mark.slow
def test_what_a_module_imports_is_declared() -> None:
    """If this failed, a fresh installation would stop at an import, wherever no other package brings it along."""
    at_load = distributions(inside=False)
    assert len(at_load) > 4
    assert at_load <= declared("dependencies")


def test_what_is_declared_is_imported() -> None:
    """If this failed, every user would install a package that nothing uses."""
    assert declared("dependencies") <= distributions(inside=True)


@pytest.fixture
def report() -> EnergyReport:
    torch.manual_seed(0)
    return hf_mhe.analyze(torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.ReLU(), torch.nn.Linear(9, 4)))


@pytest.fixture
def _without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # to the import system: a package that is not there
    with pytest.raises(ImportError):
        importlib.import_module("matplotlib")


@pytest.mark.usefixtures("_without_matplotlib")
def test_a_figure_says_what_it_needs(report: EnergyReport, tmp_path: Path) -> None:
    """If this failed, `.plot()` on a core installation would end in an ImportError from somewhere inside."""
    for shown in (report, hf_mhe.compare(report, report)):
        with pytest.raises(MHEError, match=f"^a figure {NEEDS_MATPLOTLIB}$"):
            shown.plot(tmp_path / "scores.png")
    with pytest.raises(MHEError, match=f"^--plot {NEEDS_MATPLOTLIB}$"):
        check_outputs(plot=tmp_path / "scores.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_without_matplotlib")
def test_a_page_is_made_without_figures(report: EnergyReport) -> None:
    """If this failed, the table of a report could not be looked at on a core installation."""
    for page in (report.to_html(), hf_mhe.compare(report, report).to_html()):
        assert re.search(NEEDS_MATPLOTLIB.replace("'", "(?:'|&#x27;)"), page)
        assert "<svg" not in page
        assert report.groups[0].name in page


@pytest.mark.slow
@pytest.mark.usefixtures("_without_matplotlib")
def test_a_model_is_published_without_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If this failed, a training on a core installation could not be published, or its card would miss its images."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]))
    with caplog.at_level(logging.WARNING, logger="hf_mhe"):
        folder = save_for_hub(model, tmp_path / "out", before=hf_mhe.analyze(model))
    ours = [record.message for record in caplog.records if record.name.startswith("hf_mhe")]
    assert len(ours) == 1
    assert re.search(NEEDS_MATPLOTLIB, ours[0])
    assert not list(folder.rglob("*.png"))
    assert "](figures/" not in (folder / "README.md").read_text(encoding="utf-8")


def test_the_quickstart_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If this failed, the quickstart of a core installation would stop in the middle, with a folder half made."""
    for package in ("datasets", "sklearn"):
        monkeypatch.setitem(sys.modules, package, None)
    named = r"^quickstart needs datasets, scikit-learn, which are not installed: pip install 'hf-mhe\[quickstart\]'$"
    with pytest.raises(MHEError, match=named):
        run(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

"""What the test suite promises about itself."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_whoever_may_be_skipped_for_a_package_is_run_with_it() -> None:
    """If this failed, CI would skip a test twice: without the package, and where the package is installed."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    everybody = project[project.index("\ndependencies = [") :].partition("\n]")[0]
    everybody += project[project.index("\ntest = [") :].partition("\n]")[0]
    checked = 0
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        packages = re.findall(r'importorskip\("(\w+)', text)
        if any(package.replace("_", "-") not in everybody for package in packages):
            assert re.search(r"mark\.(integrations|engines|recipes)\b", text), (
                f"{path}: mark it integrations, engines or recipes"
            )
            checked += 1
    assert checked > 5

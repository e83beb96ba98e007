"""The page in a real browser: it sorts, filters and unfolds, says nothing in the console, and runs no name as code."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hf_mhe.analysis import EnergyReport

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.story,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
EVIL = "<img src=x onerror=document.title='broken'>"
# What a keyboard reaches are the elements that take the focus; Enter on a button or a summary is a click.
DRIVE = """
const names = () => [...document.querySelectorAll("#groups tbody tr")].filter((row) => !row.hidden)
  .map((row) => row.cells[0].dataset.value);
const found = {images: document.querySelectorAll("img").length, start: names()};
const head = [...document.querySelectorAll("#groups th button")].find((each) => each.textContent === "score");
head.focus();
found.focused = document.activeElement === head;
head.click();
found.descending = names();
head.click();
found.ascending = names();
const summary = document.querySelector("#groups summary");
summary.focus();
found.unfolds = document.activeElement === summary && !summary.parentElement.open;
summary.click();
found.unfolds = found.unfolds && summary.parentElement.open;
found.explanation = summary.parentElement.innerText;
const search = document.querySelector("input[data-table=groups]");
search.value = "CLASSIFIER";
search.dispatchEvent(new Event("input"));
found.filtered = names();
found.requests = performance.getEntriesByType("resource").length;
const report = document.createElement("pre");
report.id = "found";
report.textContent = JSON.stringify(found);
document.body.append(report);
"""


@pytest.fixture(scope="module")
def found(report: EnergyReport, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser made of a page whose layers have names that are code."""
    rows = [
        dataclasses.replace(group, name=group.name + EVIL, row_names={0: EVIL}, duplicate_pairs=((0, 1, 0.99),))
        for group in report.groups
    ]
    page = tmp_path_factory.mktemp("page") / "page.html"
    text = dataclasses.replace(report, groups=rows, skipped={EVIL: EVIL}, notes=(EVIL,)).to_html()
    page.write_text(text.replace("</body>", f"<script>{DRIVE}</script></body>"), encoding="utf-8")
    return driven(page)


def driven(page: Path) -> dict[str, Any]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    done = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert match, done.stdout[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(html.unescape(match[1])), "console": console}


def test_no_name_is_run_as_code(found: dict[str, Any]) -> None:
    """If this fails, whoever uploads a model runs a script in the browser of whoever looks at its report."""
    assert found["images"] == 0
    assert found["console"] == []
    assert found["requests"] == 0
    assert EVIL in found["explanation"]


def test_the_table_sorts_filters_and_unfolds(found: dict[str, Any], report: EnergyReport) -> None:
    """If this fails, the reader of a large report cannot find a layer, or cannot read what its numbers mean."""
    assert found["start"] == [group.name + EVIL for group in report.competing]
    by_score = [g.name + EVIL for g in sorted(report.competing, key=lambda group: group.score or 0.0)]
    assert found["focused"]
    assert (found["ascending"], found["descending"]) == (by_score, by_score[::-1])
    assert found["unfolds"]
    assert "as crowded as independent random directions" in found["explanation"]
    assert found["filtered"] == [name for name in found["ascending"] if "classifier" in name]

"""The HTML pages and the figures: self-contained, complete, and drawn from the report."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import torch

import hf_mhe
from hf_mhe.analysis import Comparison, EnergyReport
from hf_mhe.analysis.page.plots import MOST_ROWS, comparison_figure, cosine_figure, random_shares, report_figure
from hf_mhe.analysis.report.explain import explain
from hf_mhe.errors import MHEError

_VOID = {"meta", "input", "link", "img", "br", "hr", "wbr", "base", "source"}


class Page(HTMLParser):
    """What a browser would see: tags, references, and the text of each cell of the table of layers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.references: list[str] = []
        self.cells: list[str] = []
        self.explanations: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        named = dict(attrs)
        self.references += [named[key] or "" for key in ("src", "href", "srcset", "data", "action") if key in named]
        if tag == "td":
            self.cells.append("")
        if tag == "div" and "td" in self.open:
            self.explanations.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open and "div" in self.open[self.open.index("td") :]:
            self.explanations[-1] += data
        elif "td" in self.open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def comparison(report: EnergyReport, other_report: EnergyReport) -> Comparison:
    return hf_mhe.compare(report, other_report)


@pytest.fixture(params=["report", "comparison"])
def shown(request: pytest.FixtureRequest) -> EnergyReport | Comparison:
    return request.getfixturevalue(request.param)


def names_of(shown: EnergyReport | Comparison) -> list[str]:
    return [group.name for group in (shown.groups if isinstance(shown, EnergyReport) else shown.rows)]


def test_the_page_asks_the_network_for_nothing(shown: EnergyReport | Comparison) -> None:
    """If this fails, opening a report tells some server about it, or shows nothing without a network."""
    text = shown.to_html()
    page = Page(text)
    assert not page.open
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import|https?:|\bfetch\(|XMLHttpRequest", text)
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert "default-src 'none'" in text


def test_the_page_holds_every_group(shown: EnergyReport | Comparison) -> None:
    """If this fails, a layer of the report is missing from its page, or the order is another."""
    page = Page(shown.to_html())
    names = names_of(shown)
    assert [cell for cell in page.cells if cell in set(names)] == names
    assert page.tags.count("svg") >= 1


def test_the_numbers_of_a_row_are_on_the_page(report: EnergyReport) -> None:
    """If this fails, the page shows other numbers than the report."""
    cells = Page(report.to_html()).cells
    for group in report.competing:
        at = cells.index(group.name)
        row = cells[at : at + 18]
        assert row[3:5] == [f"{group.n:,}", f"{group.d:,}"]
        assert row[5:8] == [f"{group.equivalent_dimension:,.1f}", f"{group.spread:,.3f}", group.verdict]
        assert row[8:11] == [f"{group.energy:,.6f}", f"{group.expected:,.6f}", f"{group.score:,.3f}"]
        assert row[12] == f"{group.max_cosine:.3f}"
        assert row[17] == str(group.dead)


def test_each_layer_is_explained(report: EnergyReport) -> None:
    """If this fails, whoever reads a page does not learn what the numbers of a layer mean."""
    explanations = Page(report.to_html()).explanations
    assert len(explanations) == len(report.groups)
    for group, said in zip(report.groups, explanations, strict=True):
        assert f"{group.n:,} neurons of dimension {group.d:,}" in said
        assert said == "".join(explain(group))


def test_texts_are_escaped(report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, a module or a folder with a malicious name runs its script in the reader's browser."""
    bad = '<script>alert("1")</script>&$x$_{'
    rows = [dataclasses.replace(group, name=f"{bad}{place}") for place, group in enumerate(report.groups)]
    evil = dataclasses.replace(report, groups=rows, source=bad, skipped={bad: bad}, notes=(bad,))
    for text in (evil.to_html(tmp_path / "evil.html"), hf_mhe.compare(evil, evil).to_html()):
        page = Page(text)
        assert page.tags.count("script") == 1
        assert bad in page.text
    assert f"{bad}0" in page.cells


def test_explanations_are_escaped(report: EnergyReport) -> None:
    """If this fails, a token or a class name in a folded explanation runs its script in the reader's browser."""
    bad = "<img src=x onerror=alert(1)>"
    row = dataclasses.replace(report.groups[0], row_names={0: bad}, duplicate_pairs=((0, 1, 0.99),), apart=bad)
    page = Page(dataclasses.replace(report, groups=[row, *report.groups[1:]]).to_html())
    assert "img" not in page.tags
    assert any(bad in said for said in page.explanations)


def test_facts_lead_the_summary(comparison: Comparison) -> None:
    """If this fails, the page of a training run cannot say what the training was for."""
    page = Page(comparison.to_html(facts={"Accuracy": ("0.91 → 0.93", "<test> images")}))
    assert page.text.index("Accuracy") < page.text.index("0.91 → 0.93") < page.text.index("Mean spread")
    assert "<test> images" in page.text


def test_skipped_parameters_are_told(report: EnergyReport) -> None:
    """If this fails, the reader of a page cannot see what was left out of it."""
    cells = Page(dataclasses.replace(report, skipped={"a.scale": "dtype I8"}).to_html()).cells
    assert cells[cells.index("a.scale") + 1] == "dtype I8"


def test_a_report_without_scores_or_spreads_still_has_a_page() -> None:
    """If this fails, a model of which no layer has a finite expectation, or an old report of it, cannot be shown."""
    torch.manual_seed(0)
    report = hf_mhe.analyze(torch.nn.Sequential(torch.nn.Linear(2, 6)))
    page = Page(report.to_html())
    assert "∞" in page.cells
    report_figure(report)
    old = dataclasses.replace(report, groups=[dataclasses.replace(report.groups[0], spread=None, verdict=None)])
    assert "no group has a spread" in Page(old.to_html()).text
    with pytest.raises(MHEError, match=r"no group has a spread .* earlier version"):
        report_figure(old)


def test_a_model_of_depthwise_kernels_alone_has_a_page() -> None:
    """If this fails, a model without neurons that compete ends in a traceback, or is blamed on its file."""
    report = hf_mhe.analyze(torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, groups=16)))
    assert (report.competing, report.summary.groups, report.summary.apart) == ([], 0, 1)
    assert 'id="apart"' in report.to_html()
    assert "the neurons of none of them compete" in hf_mhe.compare(report, report).to_html()
    with pytest.raises(MHEError, match="the neurons of none of them compete"):
        report_figure(report)


def test_the_figure_shows_every_spread(report: EnergyReport) -> None:
    """If this fails, the picture and the table of a report differ."""
    figure = report_figure(report)
    axes = figure.axes[0]
    drawn = [tuple(point) for dots in axes.collections if hasattr(dots, "get_sizes") for point in dots.get_offsets()]
    wanted = {(group.spread, place) for place, group in enumerate(report.competing)}
    assert {(x, int(y)) for x, y in drawn} >= wanted
    assert [label.get_text() for label in axes.get_yticklabels()] == [group.name for group in report.competing]
    low, high = axes.get_xlim()
    assert 0 < low < 0.5 < 2.0 < high
    assert all(low < group.spread < high for group in report.competing)


def test_the_dumbbells_join_before_and_after(comparison: Comparison) -> None:
    """If this fails, the picture of a comparison joins the wrong points."""
    axes = comparison_figure(comparison).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    segments = [
        segment for lines in axes.collections if hasattr(lines, "get_segments") for segment in lines.get_segments()
    ]
    drawn = {labels[round(segment[0][1])]: (segment[0][0], segment[1][0]) for segment in segments}
    assert drawn == {
        row.name: (row.before.spread, row.after.spread) for row in comparison.rows if row.after.apart is None
    }


def test_a_model_of_many_layers_stays_readable(report: EnergyReport) -> None:
    """If this fails, the figure of a large model is metres tall, or its cut is not told."""
    rows = [
        dataclasses.replace(group, name=f"model.layers.{copy}.{group.name}")
        for copy in range(40)
        for group in report.competing
    ]
    figure = report_figure(dataclasses.replace(report, groups=rows))
    assert len(figure.axes[0].get_yticklabels()) == MOST_ROWS
    assert f"{MOST_ROWS} most crowded of {len(rows)}" in figure.get_suptitle()
    assert figure.get_figheight() < 20


def test_labels_of_long_names_stay_apart(report: EnergyReport) -> None:
    """If this fails, deep models get a figure on which several layers carry the same label."""
    rows = [
        dataclasses.replace(
            report.groups[place % 4], name=f"model.language_model.text_tower.layers.{place}.mixer.{'x' * 40}"
        )
        for place in range(30)
    ]
    labels = report_figure(dataclasses.replace(report, groups=rows)).axes[0].get_yticklabels()
    texts = [label.get_text() for label in labels]
    assert len(set(texts)) == len(rows)
    assert max(map(len, texts)) <= 62


def test_random_shares_are_those_of_random_directions() -> None:
    """If this fails, the curve that a layer is held against is not that of independent directions."""
    edges = numpy.linspace(-1, 1, 21)
    # d = 3: the cosine is uniform (Archimedes).
    assert random_shares(edges, 3) == pytest.approx(numpy.full(20, 0.05))
    rows = torch.nn.functional.normalize(
        torch.randn(2, 200_000, 6, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    drawn, _ = numpy.histogram((rows[0] * rows[1]).sum(-1).numpy(), edges)
    assert random_shares(edges, 6) == pytest.approx(drawn / 200_000, abs=0.004)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_figures_are_saved_in_the_suffix_format(
    suffix: str, start: bytes, shown: EnergyReport | Comparison, tmp_path: Path
) -> None:
    """If this fails, a figure is saved in another format than its name says, or differs from run to run."""
    first = shown.plot(tmp_path / f"a{suffix}").read_bytes()
    assert first.startswith(start)
    assert shown.plot(tmp_path / f"b{suffix}").read_bytes() == first


def test_other_suffixes_are_refused(report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, a mistyped suffix ends in matplotlib's traceback."""
    with pytest.raises(MHEError, match=r"\.png, \.svg, \.pdf; got '\.gif'"):
        report.plot(tmp_path / "a.gif")
    with pytest.raises(MHEError, match=r"no suffix"):
        report.plot(tmp_path / "figure")


def test_few_pairs_make_no_histogram() -> None:
    """If this fails, the cosine of one pair is drawn as a distribution."""
    with pytest.raises(MHEError, match=r"pairs of neurons"):
        cosine_figure(hf_mhe.analyze(torch.nn.Sequential(torch.nn.Linear(8, 3))))


@pytest.mark.slow
def test_drawing_changes_nothing_of_the_callers() -> None:
    """If this fails, analyzing switches a notebook's backend, or leaves figures open in pyplot."""
    script = (
        "import sys, torch, hf_mhe\n"
        "report = hf_mhe.analyze(torch.nn.Sequential(torch.nn.Linear(8, 40)))\n"
        "assert 'matplotlib' not in sys.modules and 'pandas' not in sys.modules\n"
        "import matplotlib\n"
        "before = dict(matplotlib.rcParams)\n"
        "report.to_html()\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "import matplotlib.pyplot\n"
        "assert matplotlib.pyplot.get_fignums() == []\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

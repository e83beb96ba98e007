"""The HTML pages: a report, or a comparison, in one file that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_mhe.analysis.page.parts import Column, definitions, figure, number, page, paragraphs, table, tiles
from hf_mhe.analysis.page.plots import MOST_ROWS, comparison_figure, cosine_figure, report_figure
from hf_mhe.analysis.report.comparison import Comparison, ComparisonRow
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.report import EnergyReport
from hf_mhe.analysis.report.stacks import StackEnergy
from hf_mhe.analysis.report.summary import ReportSummary

_EXPLANATION = (
    "A neuron is a row of a layer's weight matrix; what matters is the direction in which it points. The energy of a "
    "layer is the mean, over all pairs of its neurons, of a repulsion that grows as two of them point the same way.",
    "The score sets that energy against what is possible for as many neurons in as many dimensions: 0 is the provable "
    "optimum, 1 is what independent random directions would have, and above 1 the neurons point together more than "
    "chance would make them: they are redundant.",
    "Near-duplicates are pairs whose cosine is at least {duplicate_cosine:g}; coincident pairs point exactly the same "
    "way and are left out of the energy; dead neurons are rows of zeros, which have no direction.",
)


def report_page(report: EnergyReport) -> str:
    """The page of one report: summary, figures, a sortable table of all groups, what was skipped and why."""
    drawn = f"The {MOST_ROWS} most redundant layers. " if len(report.groups) > MOST_ROWS else ""
    sections = [
        tiles(_report_tiles(report.summary)),
        _explanation(report),
        paragraphs(report.notes, "note"),
        figure(
            lambda: report_figure(report),
            "Score of each layer",
            f"{drawn}Bars start at a random draw; to the right of it a layer is redundant, to the left spread out.",
        ),
        _stacks(report.stacks),
        table("groups", "Layers, most redundant first", _GROUP_COLUMNS, report.groups, "score"),
        figure(
            lambda: cosine_figure(report),
            "Cosines within the most redundant layers",
            "Share of the pairs of neurons in each bin of cosine, on a logarithmic scale.",
        ),
        definitions(f"Skipped parameters ({len(report.skipped)})", report.skipped, ("parameter", "reason")),
    ]
    lede = _from(report)
    return page("Hyperspherical energy report", f"{lede} · {report.potential.describe()}", sections, _versions(report))


def _stacks(stacks: list[StackEnergy]) -> str:
    if not stacks:
        return ""
    return table("stacks", "Experts and heads, each stack together", _STACK_COLUMNS, stacks, "mean score")


def comparison_page(comparison: Comparison, facts: Mapping[str, tuple[str, str]] | None = None) -> str:
    """The page of a comparison: summary, figure, a sortable table of all groups that both sides have.

    `facts` are further tiles to lead with, such as the accuracies: label → (value, one more line).
    """
    before, after = comparison.before, comparison.after
    sections = [
        tiles([(label, *entry) for label, entry in (facts or {}).items()] + _comparison_tiles(comparison)),
        _explanation(after),
        paragraphs(dict.fromkeys((*comparison.notes, *before.notes, *after.notes)), "note"),
        figure(
            lambda: comparison_figure(comparison),
            "Score of each layer, before and after",
            "Hollow: before. Filled: after. A move to the left means that the neurons have spread out.",
        ),
        table("groups", "Layers, most redundant first", _row_columns(comparison), comparison.rows, "score after"),
        definitions(
            f"Only in one of the two ({len(comparison.only_before) + len(comparison.only_after)})",
            dict.fromkeys(comparison.only_before, "before") | dict.fromkeys(comparison.only_after, "after"),
            ("group", "in"),
        ),
        definitions(f"Skipped parameters ({len(after.skipped)})", after.skipped, ("parameter", "reason")),
    ]
    lede = f"{_from(before)} → {_from(after)} · {after.potential.describe()}"
    return page("Hyperspherical energy, before and after", lede, sections, _versions(after))


def _explanation(report: EnergyReport) -> str:
    lines = (line.format(duplicate_cosine=report.duplicate_cosine) for line in _EXPLANATION)
    return paragraphs(lines, "explain")


def _from(report: EnergyReport) -> str:
    return f"{report.source} @ {report.revision[:10]}" if report.revision else report.source


def _versions(report: EnergyReport) -> str:
    return f"hf_mhe {report.hf_mhe_version}, torch {report.torch_version}. Energy: Liu et al., arXiv:1805.09298."


def _report_tiles(summary: ReportSummary) -> list[tuple[str, str, str]]:
    return [
        ("Mean score", number(summary.mean_score, 3), f"median {number(summary.median_score, 3)}; 1 is random"),
        ("Most redundant", number(summary.most_redundant_score, 3), summary.most_redundant or "no group has a score"),
        ("Layers", number(summary.groups), f"{summary.neurons:,} neurons, {summary.parameters:,} weights"),
        ("Largest cosine", number(summary.max_cosine, 3), "between two neurons of one layer"),
        ("Near-duplicates", number(summary.near_duplicates), f"pairs; {summary.coincident:,} coincident"),
        ("Dead neurons", number(summary.dead), f"parameters skipped: {summary.skipped:,}"),
    ]


def _comparison_tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    summary = comparison.summary

    def change(before: float | int | None, after: float | int | None, digits: int | None = None) -> str:
        return f"{number(before, digits)} → {number(after, digits)}"

    change_text = "" if summary.mean_score_change is None else f"change {summary.mean_score_change:+.3f}"
    return [
        ("Mean score", change(summary.mean_score_before, summary.mean_score_after, 3), change_text),
        (
            "Most redundant",
            change(summary.most_redundant_before_score, summary.most_redundant_after_score, 3),
            " → ".join(
                dict.fromkeys(name for name in (summary.most_redundant_before, summary.most_redundant_after) if name)
            ),
        ),
        (
            "Improved",
            f"{summary.improved} of {summary.groups}",
            f"{summary.worsened} worsened, {summary.unchanged} unchanged",
        ),
        ("Largest cosine", change(summary.max_cosine_before, summary.max_cosine_after, 3), "in any layer"),
        (
            "Near-duplicates",
            change(summary.near_duplicates_before, summary.near_duplicates_after),
            f"pairs; coincident {change(summary.coincident_before, summary.coincident_after)}",
        ),
        ("Dead neurons", change(summary.dead_before, summary.dead_after), "rows of zeros"),
    ]


def _verdict_css(row: ComparisonRow) -> str:
    return {"improved": "good", "worsened": "bad"}.get(row.verdict, "")


def _of(key: str) -> Any:
    """A column's value by the name of the row's attribute."""
    return lambda row: getattr(row, key)


def _side(side: str, key: str) -> Any:
    return lambda row: getattr(getattr(row, side), key)


def _name_css(row: GroupEnergy | StackEnergy | ComparisonRow) -> str:
    return "name"


_NAMED = [
    Column("layer", _of("name"), text=True, css=_name_css),
    Column("kind", _of("kind"), text=True),
    Column("role", _of("role"), text=True),
    Column("n", _of("n"), title="neurons with a direction"),
    Column("d", _of("d"), title="dimension of a neuron"),
]
_GROUP_COLUMNS = [
    *_NAMED,
    Column("energy", _of("energy"), 6, title="mean over ordered pairs of neurons"),
    Column("expected", _of("expected"), 6, title="of as many independent random directions"),
    Column("score", _of("score"), 3, title="0 optimum, 1 random draw, above 1 redundant"),
    Column("z", _of("z"), 1, title="standard deviations of the random draw above its mean"),
    Column("largest cosine", _of("max_cosine"), 3),
    Column("nearest pair", lambda row: f"{row.nearest_pair[0]}, {row.nearest_pair[1]}", text=True, title="rows"),
    Column("near-duplicates", _of("near_duplicates"), title="pairs"),
    Column("coincident", _of("coincident"), title="pairs that point exactly the same way"),
    Column("dead", _of("dead"), title="rows of zeros"),
]
_STACK_COLUMNS = [
    Column("stack", _of("name"), text=True, css=_name_css),
    Column("role", _of("role"), text=True),
    Column("groups", _of("groups"), title="experts, heads, or groups of a convolution"),
    Column("neurons", _of("neurons"), title="neurons with a direction, of all groups"),
    Column("d", _of("d"), title="dimension of a neuron"),
    Column("mean energy", _of("energy"), 6, title="mean of the groups' energies"),
    Column("mean score", _of("score"), 3, title="0 optimum, 1 random draw, above 1 redundant"),
    Column("lowest", _of("lowest_score"), 3, title="lowest score of a group"),
    Column("highest", _of("highest_score"), 3, title="highest score of a group"),
    Column("most redundant", _of("most_redundant"), text=True, css=_name_css),
    Column("largest cosine", _of("max_cosine"), 3, title="of two neurons of one group"),
    Column("near-duplicates", _of("near_duplicates"), title="pairs"),
    Column("dead", _of("dead"), title="rows of zeros"),
]
_NAME_BEFORE = Column("layer before", _of("name_before"), text=True, css=_name_css)
_ROW_COLUMNS = [
    *_NAMED,
    Column("score before", _of("score_before"), 3),
    Column("score after", _of("score_after"), 3),
    Column("change", _of("score_change"), 3, title="below 0: the neurons have spread out", css=_verdict_css),
    Column("energy before", _of("energy_before"), 6),
    Column("energy after", _of("energy_after"), 6),
    Column("cosine before", _side("before", "max_cosine"), 3, title="largest cosine of two neurons"),
    Column("cosine after", _side("after", "max_cosine"), 3, title="largest cosine of two neurons"),
    Column("near-duplicates before", _side("before", "near_duplicates"), title="pairs"),
    Column("near-duplicates after", _side("after", "near_duplicates"), title="pairs"),
    Column("dead after", _side("after", "dead"), title="rows of zeros"),
]


def _row_columns(comparison: Comparison) -> list[Column]:
    """With the names before, where any is another than after."""
    renamed = any(row.name_before != row.name for row in comparison.rows)
    return [_ROW_COLUMNS[0], _NAME_BEFORE, *_ROW_COLUMNS[1:]] if renamed else _ROW_COLUMNS

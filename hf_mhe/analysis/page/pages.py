"""The HTML pages: a report, or a comparison, in one file that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from hf_mhe.analysis.page.parts import PageColumn, definitions, figure, number, page, paragraphs, table, tiles
from hf_mhe.analysis.page.plots import MOST_ROWS, comparison_figure, cosine_figure, report_figure
from hf_mhe.analysis.page.subjects import Comparison, Report, Row
from hf_mhe.analysis.report.columns import LEADING, Column, Shown, columns
from hf_mhe.analysis.report.explain import explain
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.stacks import StackEnergy
from hf_mhe.analysis.report.summary import ReportSummary

_EXPLANATION = (
    "A neuron is a row of a layer's weight matrix; what matters is the direction in which it points. The spread of a "
    "layer says how evenly its neurons point: 1 is what independent random directions have, however many, and below 1 "
    "they are as crowded as random directions in fewer dimensions, the equivalent dimension, would be.",
    "The energy of a layer is the mean, over all pairs of its neurons, of a repulsion that grows as two of them point "
    "the same way. The score sets it against what is possible: 0 is the provable optimum, 1 a random draw. It grows "
    "with the number of neurons and cannot see copies that are exact, which the spread does.",
    "What crowds a layer: copies are near-duplicates of each other, a shared direction is one that all neurons lean "
    "to, few dimensions are all that they fill. Unfold a layer's name for what that means for it.",
    "Near-duplicates are pairs whose cosine is at least {duplicate_cosine:g}; coincident pairs point exactly the same "
    "way and are left out of the energy; dead neurons are rows of zeros, which have no direction.",
)
_APART = (
    "Their neurons never see the same input, or are no alternatives of each other, so that being alike makes none of "
    "them superfluous. They are measured, and left out of the summary, the ranking and the checks."
)


def report_page(report: Report) -> str:
    """The page of one report: summary, figures, a sortable table of all groups, what was skipped and why."""
    drawn = f"The {MOST_ROWS} most crowded layers. " if len(report.competing) > MOST_ROWS else ""
    sections = [
        tiles(_report_tiles(report.summary)),
        _explanation(report),
        paragraphs(report.notes, "note"),
        figure(
            lambda: report_figure(report),
            "Spread of each layer",
            f"{drawn}Bars start at a random draw; to the left of it a layer is crowded, to the right spread out.",
        ),
        _stacks(report.stacks),
        table("groups", "Layers, most crowded first", _group_columns(report), report.competing, "spread"),
        _variants(report),
        _apart(report),
        figure(
            lambda: cosine_figure(report),
            "Cosines within the most crowded layers",
            "Share of the pairs of neurons in each bin of cosine, on a logarithmic scale.",
        ),
        definitions(f"Skipped parameters ({len(report.skipped)})", report.skipped, ("parameter", "reason")),
    ]
    lede = _from(report)
    return page("Hyperspherical energy report", f"{lede} · {report.potential.describe()}", sections, _versions(report))


def _stacks(stacks: Sequence[StackEnergy]) -> str:
    if not stacks:
        return ""
    return table(
        "stacks", "Experts and heads, each stack together", _page_columns(StackEnergy, stacks), stacks, "mean spread"
    )


def _apart(report: Report) -> str:
    if not report.apart:
        return ""
    why = PageColumn("why", lambda group: group.apart, is_text=True)
    shown = _group_columns(report)
    return table(
        "apart", "Layers whose neurons do not compete", [*shown[:1], why, *shown[1:]], report.apart, "spread", _APART
    )


def _variants(report: Report) -> str:
    """The scores under further potentials, where the report has them."""
    rows = [group for group in report.competing if group.variants]
    if not rows:
        return ""
    name = PageColumn("layer", lambda group: group.name, is_text=True, css=_name_css)
    scores = [
        PageColumn(variant.label, partial(_score_at, place), 3) for place, variant in enumerate(rows[0].variants)
    ]
    remark = "s is the exponent; a: angles in place of chords; half: half space."
    return table("variants", "Scores under the paper's twelve potentials", [name, *scores], rows, "", remark)


def _score_at(place: int, group: GroupEnergy) -> float | None:
    return group.variants[place].score


def _group_columns(report: Report) -> list[PageColumn]:
    """The columns of a table of layers, of which each can be unfolded into its explanation."""
    name, *others = _page_columns(GroupEnergy, report.groups)
    return [replace(name, more=lambda group: explain(group, duplicate_cosine=report.duplicate_cosine)), *others]


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
            "Spread of each layer, before and after",
            "Hollow: before. Filled: after. A move to the right means that the neurons have spread out.",
        ),
        table("groups", "Layers, most crowded first", _row_columns(comparison), comparison.rows, "spread after"),
        definitions(
            f"Only in one of the two ({len(comparison.only_before) + len(comparison.only_after)})",
            dict.fromkeys(comparison.only_before, "before") | dict.fromkeys(comparison.only_after, "after"),
            ("group", "in"),
        ),
        definitions(f"Skipped parameters ({len(after.skipped)})", after.skipped, ("parameter", "reason")),
    ]
    lede = f"{_from(before)} → {_from(after)} · {after.potential.describe()}"
    return page("Hyperspherical energy, before and after", lede, sections, _versions(after))


def _explanation(report: Report) -> str:
    lines = (line.format(duplicate_cosine=report.duplicate_cosine) for line in _EXPLANATION)
    return paragraphs(lines, "explain")


def _from(report: Report) -> str:
    return f"{report.source} @ {report.revision[:10]}" if report.revision else report.source


def _versions(report: Report) -> str:
    return f"hf_mhe {report.hf_mhe_version}, torch {report.torch_version}. Energy: Liu et al., arXiv:1805.09298."


def _report_tiles(summary: ReportSummary) -> list[tuple[str, str, str]]:
    apart = f"; {summary.apart:,} apart" if summary.apart else ""
    return [
        ("Mean spread", number(summary.mean_spread, 3), f"median {number(summary.median_spread, 3)}; 1 is random"),
        ("Most crowded", number(summary.lowest_spread, 3), summary.most_crowded or "no layer has a spread"),
        ("Mean score", number(summary.mean_score, 3), f"median {number(summary.median_score, 3)}; 1 is random"),
        ("Layers", number(summary.groups), f"{summary.neurons:,} neurons, {summary.parameters:,} weights{apart}"),
        ("Largest cosine", number(summary.max_cosine, 3), "between two neurons of one layer"),
        ("Near-duplicates", number(summary.near_duplicates), f"pairs; {summary.coincident:,} coincident"),
        ("Dead neurons", number(summary.dead), f"parameters skipped: {summary.skipped:,}"),
    ]


def _comparison_tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    summary = comparison.summary
    before, after = summary.before, summary.after

    def change(key: str, digits: int | None = None) -> str:
        return f"{number(getattr(before, key), digits)} → {number(getattr(after, key), digits)}"

    def difference(value: float | None) -> str:
        return "" if value is None else f"change {value:+.3f}; 1 is random"

    most_crowded = dict.fromkeys(name for name in (before.most_crowded, after.most_crowded) if name)
    return [
        ("Mean spread", change("mean_spread", 3), difference(summary.mean_spread_change)),
        ("Most crowded", change("lowest_spread", 3), " → ".join(most_crowded)),
        (
            "Improved",
            f"{summary.improved} of {summary.groups}",
            f"{summary.worsened} worsened, {summary.unchanged} unchanged",
        ),
        ("Mean score", change("mean_score", 3), difference(summary.mean_score_change)),
        ("Largest cosine", change("max_cosine", 3), "in any layer"),
        ("Near-duplicates", change("near_duplicates"), f"pairs; coincident {change('coincident')}"),
        ("Dead neurons", change("dead"), "rows of zeros"),
    ]


def _page_columns(row_type: type, rows: Iterable[object]) -> list[PageColumn]:
    return [_page_column(each) for each in columns(row_type, Shown.PAGE, rows)]


def _page_column(column: Column) -> PageColumn:
    return PageColumn(
        column.label, column.of, column.digits, column.is_text, column.help, _name_css if column.is_name else None
    )


def _row_columns(comparison: Comparison) -> list[PageColumn]:
    """What names a group, with its name before where any is another than after; then each number of both sides."""
    shown = columns(GroupEnergy, Shown.COMPARED_PAGE)
    compared = [each for each in shown if each.shown & Shown.COMPARED]
    found = [_page_column(each) for each in shown if each not in compared]
    if any(row.name_before != row.name for row in comparison.rows):
        found.insert(1, PageColumn("layer before", lambda row: row.name_before, is_text=True, css=_name_css))
    for each in sorted(compared, key=lambda column: column.key != LEADING):  # the leading number first
        found += [_side(each, "before"), _side(each, "after")]
        if each.key == LEADING:
            found.append(_CHANGE)
    return found


def _side(column: Column, side: str) -> PageColumn:
    return PageColumn(
        f"{column.label} {side}", lambda row: column.of(getattr(row, side)), column.digits, column.is_text, column.help
    )


def _verdict_css(row: Row) -> str:
    return {"improved": "good", "worsened": "bad"}.get(row.verdict, "")


def _name_css(row: object) -> str:
    return "name"


_CHANGE = PageColumn(
    "change", lambda row: row.spread_change, 3, title="above 0: the neurons have spread out", css=_verdict_css
)

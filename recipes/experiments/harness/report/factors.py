"""Tables of arms over several columns: the combinations of the factors, and the further measures of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.plan.experiment import label
from harness.report.markdown import difference, mean, number, table
from harness.statistics.breakdown import Column, Figures, by_cell, by_measure, differences, of_interaction
from harness.statistics.inference import Paired
from harness.statistics.summary import Summary


def parts(summary: Summary) -> Iterator[str]:
    """The tables that an experiment has beside the one of its arms, each with a line above it."""
    if summary.experiment.factors:
        yield _said(summary, "By factor", by_cell(summary))
        if said := interaction(summary):
            yield said
    if summary.experiment.further:
        yield _said(summary, "Other measures", by_measure(summary))


def _said(summary: Summary, title: str, columns: list[Column]) -> str:
    found = differences(summary, columns)
    rows = [
        [outcome.arm.says, *(_cell(each.by_arm[name], found.get((name, each.heads))) for each in columns)]
        for name, outcome in summary.outcomes.items()
    ]
    if any(column.start is not None for column in columns):
        rows.append(["*spread at the start*", *(number(column.start, 2) for column in columns)])
    beside = ""
    if summary.experiment.nothing is not None:
        nothing = summary.experiment.arm(summary.experiment.nothing).says
        beside = f", and the paired difference from “{nothing}”; * where Holm's p over the table is below 0.05"
    over = table(["arm", *(column.heads for column in columns)], rows, left=1)
    return f"{title}: means of the fresh seeds{beside}.\n\n{over}"


def _cell(figures: Figures, each: Paired | None) -> str:
    said = mean(list(figures.values()))
    if each is None:
        return said
    star = "*" if each.holm is not None and each.holm < 0.05 else ""
    return f"{said}; {difference(each)}{star}"


def interaction(summary: Summary) -> str:
    """By how much the gain is larger where the claim is made; nothing without a claim in some columns only."""
    each = of_interaction(summary)
    if each is None:
        return ""
    where = label(summary.experiment.claimed)
    said = f"Interaction: at {where} the gain of `{summary.experiment.primary}` differs by {difference(each)} points"
    said += " from that in the other columns"
    return f"{said}." if math.isnan(each.low) else f"{said}, p {each.p:.3f}, n {each.n}."

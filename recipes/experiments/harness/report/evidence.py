"""What a reader sees first: a line for each experiment, and under each claim the few arms that decide it."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report import factors
from harness.report.document import aim, claim, state
from harness.report.markdown import difference, mean, number, table
from harness.statistics import breakdown, rule
from harness.statistics.summary import Outcome, Summary


def overview(summaries: Sequence[Summary]) -> str:
    """A line for each experiment that has begun: against doing nothing, the best of the others, and the verdict."""
    heads = ["experiment", "measured", "MHE", "minus doing nothing", "minus the best of the others", "verdict"]
    begun = [summary for summary in summaries if summary.runs]
    return table(heads, [_line(summary) for summary in begun], left=2)


def brief(summary: Summary) -> str:
    """The state, the verdict, and the arms that decide it: the primary one, nothing, and the best of the others."""
    if not summary.runs:
        return state(summary)
    if summary.experiment.primary is None:
        parts = [*factors.parts(summary), aim(summary) if summary.experiment.name == rule.CURVES else ""]
    else:
        parts = [claim(summary), factors.interaction(summary), _deciding(summary)]
    return "\n\n".join(part for part in (state(summary), *parts) if part)


def _line(summary: Summary) -> list[str]:
    experiment = summary.experiment
    first = [experiment.title, experiment.called]
    if not summary.decided:
        return [*first, "", "", "", f"undecided: {summary.runs} of {summary.planned} runs"]
    if experiment.primary is None:
        said = aim(summary).strip("*.") if experiment.name == rule.CURVES else ""
        return [*first, "", _above_and_below(summary), "", said]
    best, nothing = summary.best_of_the_others, experiment.nothing
    return [
        *first,
        mean(list(summary.outcomes[experiment.primary].figures.values())),
        difference(summary.comparisons[nothing]) if nothing is not None else "",
        f"{difference(summary.comparisons[best])}, {experiment.arm(best).says}" if best is not None else "",
        f"**{summary.verdict}**",
    ]


def _above_and_below(summary: Summary) -> str:
    """How many arms are above and below doing nothing, over all columns, by Holm's p."""
    found = breakdown.differences(summary, breakdown.by_cell(summary)).values()
    clear = [each.mean > 0 for each in found if each.holm is not None and each.holm < 0.05]
    return f"{sum(clear)} of {len(found)} above it and {len(clear) - sum(clear)} below, by Holm's p"


def _deciding(summary: Summary) -> str:
    experiment = summary.experiment
    names = [experiment.primary, experiment.nothing, summary.best_rival, summary.best_of_the_others]
    heads = ["arm", "n", experiment.called, f"`{experiment.primary}` minus it", "spread", "score", "copies", "s"]
    if experiment.measure != "test":
        heads.append("test accuracy, %")
    shown = [summary.outcomes[name] for name in dict.fromkeys(names) if name is not None]
    return table(heads, [_arm(summary, outcome) for outcome in shown], left=1)


def _arm(summary: Summary, outcome: Outcome) -> list[str]:
    compared = summary.comparisons.get(outcome.arm.name)
    beside = summary.experiment.measure != "test"
    role = summary.experiment.role
    after = [outcome.after(name, role) for name in ("spread", "score", "near_duplicates")]
    return [
        outcome.arm.says,
        str(len(outcome.figures)),
        mean(list(outcome.figures.values())),
        "" if compared is None else difference(compared),
        *(number(value, digits) for value, digits in zip(after, (2, 2, 1), strict=True)),
        number(outcome.mean_of(lambda record: record["result"].get("train_cpu_seconds")), 1),
        *([number(outcome.mean_of(lambda record: record["result"]["test"]), 2)] if beside else []),
    ]

"""What a reader sees first: a line for each experiment, with what decides it, why, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.document import aim
from harness.report.markdown import difference, mean, number, table
from harness.statistics import breakdown, rule
from harness.statistics.summary import Summary

Cells = list[str]
_HEADS = ["experiment", "measured", "MHE", "minus doing nothing", "minus the best of the others"]
_BESIDE = ["n", "spread", "score", "copies", "time"]


def overview(summaries: Sequence[Summary]) -> str:
    """A line for each experiment that has begun: against doing nothing, the best of the others, and the verdict."""
    rows = [[*_compared(each), _verdict(each)] for each in summaries if each.runs]
    return table([*_HEADS, "verdict"], rows, left=2)


def of_claim(summaries: Sequence[Summary]) -> str:
    """The same for the experiments on one claim, with the number of seeds, the mechanism and the cost between."""
    rows = [[*_compared(each), *_beside(each), _verdict(each)] for each in summaries]
    return table([*_HEADS, *_BESIDE, "verdict"], rows, left=2)


def _compared(summary: Summary) -> Cells:
    experiment = summary.experiment
    first = [experiment.title, experiment.called]
    if not summary.decided:
        return [*first, "", "", ""]
    if experiment.primary is None:
        return [*first, "", _above_and_below(summary), ""]
    best, nothing = summary.best_of_the_others, experiment.nothing
    return [
        *first,
        mean(list(summary.outcomes[experiment.primary].figures.values())),
        difference(summary.comparisons[nothing]) if nothing is not None else "",
        f"{difference(summary.comparisons[best])}, {experiment.arm(best).says}" if best is not None else "",
    ]


def _verdict(summary: Summary) -> str:
    """In bold; of a null, in brackets, the difference that it would have found with a probability of 80 %."""
    if not summary.decided:
        return f"undecided: {summary.runs} of {summary.planned} runs"
    if summary.experiment.primary is None:
        return aim(summary).strip("*.") if summary.experiment.name == rule.CURVES else ""
    rival = summary.comparisons.get(summary.best_rival or "")
    open_still = summary.verdict == "not found" and not summary.better and rival is not None and rival.holm is not None
    return f"**{summary.verdict}**" + (f" ({rival.detectable:.2f})" if rival is not None and open_still else "")


def _above_and_below(summary: Summary) -> str:
    """How many arms are above and below doing nothing, over all columns, by Holm's p."""
    found = breakdown.differences(summary, breakdown.by_cell(summary)).values()
    clear = [each.mean > 0 for each in found if each.holm is not None and each.holm < 0.05]
    return f"{sum(clear)} of {len(found)} above it and {len(clear) - sum(clear)} below, by Holm's p"


def _beside(summary: Summary) -> Cells:
    """The seeds; spread, score and copies at the end of doing nothing and of MHE; and how much longer MHE takes."""
    experiment = summary.experiment
    if not summary.decided or experiment.primary is None:
        return [""] * len(_BESIDE)
    ours = summary.outcomes[experiment.primary]
    base = None if experiment.nothing is None else summary.outcomes[experiment.nothing]

    def ends(name: str, digits: int) -> str:
        before, after = (None if arm is None else arm.after(name, experiment.role) for arm in (base, ours))
        return " → ".join(number(end, digits) for end in (before, after) if end is not None)

    seconds = [None if arm is None else arm.seconds for arm in (base, ours)]
    times = f"{seconds[1] / seconds[0]:.2f} ×" if seconds[0] and seconds[1] else ""
    return [str(len(ours.figures)), ends("spread", 2), ends("score", 2), ends("near_duplicates", 1), times]

"""All that the records say of an experiment, as results/TABLES.md has it."""

from __future__ import annotations

import math

from harness.plan.experiment import label
from harness.report import factors, figures
from harness.report.markdown import difference, mean, number, probability, table
from harness.statistics import rule
from harness.statistics.inference import Paired
from harness.statistics.summary import Outcome, Summary


def block(summary: Summary) -> str:
    """The state, the verdict, a table of all arms, the figure, and the tables of factors and further measures."""
    if not summary.runs:
        return state(summary)
    parts = [state(summary), claim(summary)]
    if summary.experiment.primary is not None:
        parts.append(_table(summary))
    if figures.has_content(figures.numbers(summary)):
        parts.append(f"![{summary.experiment.title}]({summary.experiment.name}.png)")
    if summary.experiment.measure == "started":
        parts.append(_cells(summary))
    else:
        parts += factors.parts(summary)
    if summary.experiment.name == rule.CURVES:
        parts.append(_rule(summary))
    return "\n\n".join(part for part in parts if part)


def state(summary: Summary) -> str:
    """How many runs there are, and what they stand on."""
    if not summary.runs:
        return f"Not run yet: 0 of {summary.planned} runs."
    first = f"{summary.runs} of {summary.planned} runs."
    stands = sorted({r["versions"]["torch"] for o in summary.outcomes.values() for r in o.records})
    return first if not stands else f"{first} torch {', '.join(stands)}; one thread a run."


def claim(summary: Summary) -> str:
    """The verdict, with the comparison that it is about."""
    experiment = summary.experiment
    if experiment.primary is None:
        return ""
    total = len(experiment.final_seeds)
    if summary.verdict == "undecided":
        full = sum(len(outcome.figures) == total for outcome in summary.outcomes.values())
        lead = f"**Undecided: {full} of {len(summary.outcomes)} arms have their {total} fresh seeds.**"
        if summary.best_rival is None:
            return f"{lead} The rivals are not all tuned yet. {_better(summary)}".strip()
    else:
        lead = f"**{summary.verdict.capitalize()}.**"
    if summary.best_rival not in summary.comparisons:
        return f"{lead} {_better(summary)}".strip()
    compared, ours = summary.comparisons[summary.best_rival], experiment.arm(experiment.primary)
    text = (
        f"{lead} {ours.says} minus the best rival, {experiment.arm(summary.best_rival).says}: {difference(compared)} "
        f"points over {compared.n} seeds"
    )
    if compared.holm is None:
        return f"{text}. {_better(summary)}".strip()
    text += f", Holm's p {probability(compared.holm)}, effect size {compared.effect:+.2f}."
    if compared.holm >= 0.05:
        least = f"{compared.detectable:.2f}"
        text += f" The test would have found a difference of {least} points with a probability of 80 %."
    return " ".join(part for part in (text, _better(summary), _out_of_reach(summary)) if part)


def _better(summary: Summary) -> str:
    """The rivals that are above the primary arm."""
    if not summary.better:
        return ""
    each = [f"{summary.experiment.arm(n).says} ({-summary.comparisons[n].mean:+.2f})" for n in summary.better]
    return f"Better than it by Holm's p: {', '.join(each)}."


def _out_of_reach(summary: Summary) -> str:
    """The rivals that were tuned to a learning rate that the primary arm could not have been tuned to."""
    if not summary.out_of_reach:
        return ""
    rates = summary.out_of_reach.items()
    each = [f"{summary.experiment.arm(n).says} ({', '.join(f'{rate:g}' for rate in found)})" for n, found in rates]
    return f"Tuned to a learning rate beyond those that MHE chose from: {', '.join(each)}."


def _table(summary: Summary) -> str:
    experiment = summary.experiment
    heads = ["arm", "chosen", "validation", "n", "diverged", experiment.called]
    if experiment.primary is not None:
        heads += [f"`{experiment.primary}` minus it", "bootstrap", "Holm's p", "d", "ahead"]
    heads += ["near-duplicates", "mean score", "s", "MB"]
    rows = [_row(summary, outcome) for outcome in summary.outcomes.values()]
    return table(heads, rows, left=2)


def _row(summary: Summary, outcome: Outcome) -> list[str]:
    experiment, arm = summary.experiment, outcome.arm
    values = list(outcome.figures.values())
    cells = [f"{arm.says} (`{arm.name}`)", _choice(outcome), number(outcome.tuned_to, 2), str(len(values))]
    cells.append(str(sum(record["result"]["diverged"] is not None for record in outcome.records)))
    cells.append(mean(values))
    if experiment.primary is not None:
        cells += _compared(summary.comparisons.get(arm.name))
    cells += [
        number(outcome.after("near_duplicates", experiment.role), 1),
        number(outcome.after("score", experiment.role), 2),
        number(outcome.seconds, 1),
        number(outcome.mean_of(lambda record: record["peak_memory"]["mb"]), 0),
    ]
    return cells


def _choice(outcome: Outcome) -> str:
    trials = len(outcome.arm.trials())
    if outcome.choices is None:
        return f"{len(outcome.trials)} of {trials} tried"
    return " / ".join(dict.fromkeys(map(label, outcome.choices))) or "—"


def _compared(each: Paired | None) -> list[str]:
    if each is None:
        return [""] * 5
    if math.isnan(each.p):
        return [f"{each.mean:+.2f}", "", "", "", f"{each.ahead} of {each.n}"]
    boot = f"{each.boot_low:+.2f} to {each.boot_high:+.2f}"
    return [difference(each), boot, probability(each.holm), f"{each.effect:+.2f}", f"{each.ahead} of {each.n}"]


def _cells(summary: Summary) -> str:
    """How many seeds started, and their mean test accuracy, per combination of the factors."""
    experiment = summary.experiment
    cells = experiment.cells()
    names = [label(cell) for cell in cells]
    rows = []
    for outcome in summary.outcomes.values():
        row = [outcome.arm.says]
        for cell in cells:
            there = [record["result"] for record in outcome.records if record["config"]["cell"] == cell]
            started = sum(not result["stalled"] for result in there)
            mean = sum(result["test"] for result in there) / len(there) if there else math.nan
            row.append(f"{started} of {len(there)}; {mean:.1f}" if there else "")
        rows.append(row)
    return "Seeds that started, and mean test accuracy of all:\n\n" + table(["arm", *names], rows, left=1)


def _rule(summary: Summary) -> str:
    """The ratio of the gradients at each point of the curves, and the rule that follows."""
    found = rule.curves(summary.experiment, summary.records)
    weights = sorted({point.weight for points in found.values() for point in points})
    rows = []
    for name, points in found.items():
        by_weight = {point.weight: f"{point.ratio:.2g}; {point.gain:+.2f}" for point in points}
        rows.append([name, *(by_weight.get(weight, "") for weight in weights)])
    said = f"Ratio of the gradients at step {rule.STEP}, and gain in validation accuracy over λ = 0"
    over = table(["part", *(f"λ = {weight:g}" for weight in weights)], rows, left=1)
    return f"{said}:\n\n{over}\n\n{aim(summary)}"


def aim(summary: Summary) -> str:
    """The rule that follows from the curves, when all runs are there."""
    if summary.runs < summary.planned:
        return "The rule waits for all runs."
    best = rule.best_ratio(rule.curves(summary.experiment, summary.records))
    return "The rule waits for all runs." if best is None else f"**Rule: aim at a ratio of {best:.2g}.**"

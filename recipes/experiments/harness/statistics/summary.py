"""An experiment's records in numbers: what each arm came to, the comparisons, and the verdict that follows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.plan.choice import chosen, planned, scores
from harness.plan.experiment import Arm, Experiment, make_run
from harness.statistics.inference import Paired, corrected, paired

Record = Mapping[str, Any]
LEARNING_RATES = ("lr", "rate")  # the last part of the settings that are one, or a factor of one


@dataclass(frozen=True)
class Outcome:
    """One arm.

    Attributes:
        trials: (choice, mean validation figure) of the settings tried on all tuning seeds, in the first claimed cell.
        best: the best of these means in each claimed cell.
        choices: the settings chosen in each claimed cell; None while the tuning is not complete.
        figures: by seed, the measure in percent, mean over the claimed cells; seeds with all of these only.
        records: the final runs of the claimed cells.
        others: the final runs of the other cells.
    """

    arm: Arm
    tried: int
    trials: list[tuple[dict[str, Any], float]]
    best: list[float]
    choices: list[dict[str, Any]] | None
    figures: dict[int, float] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    others: list[Record] = field(default_factory=list)

    @property
    def tuned_to(self) -> float | None:
        """Validation figure of the best trial so far, mean over the claimed cells."""
        return statistics.fmean(self.best) if self.best else None

    def mean_of(self, read: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        """Mean over the final runs of a number in the record; runs without it are left out."""
        found = [value for record in self.records if (value := read(record)) is not None]
        return statistics.fmean(found) if found else None

    @property
    def seconds(self) -> float | None:
        """Mean processor time of the last training; runs that were recorded without it are left out."""
        return self.mean_of(lambda record: record["result"].get("train_cpu_seconds"))

    def after(self, name: str, role: str = "hidden") -> float | None:
        """Mean of "spread", "score" or "near_duplicates" of a role at the end; trainings that diverged have none."""
        ends = [ends for record in self.records if (ends := record["result"]["energies"]["after"]) is not None]
        found = [value for end in ends if (value := of_role(end, name, role)) is not None]
        return statistics.fmean(found) if found else None


@dataclass(frozen=True)
class Summary:
    """An experiment as far as it has come.

    Attributes:
        comparisons: the primary arm minus each other arm, by name, on the seeds that both have; Holm's p is over all.
        better: rivals that are above the primary arm by Holm's p.
        best_rival: by validation in tuning; None while a rival is not tuned.
        verdict: "confirmed", "harmful", "not found" or "undecided".
        records: all that were given, others than the experiment's too.
    """

    experiment: Experiment
    outcomes: dict[str, Outcome]
    comparisons: dict[str, Paired]
    better: list[str]
    best_rival: str | None
    verdict: str
    runs: int
    planned: int
    records: Sequence[Record] = ()

    @property
    def decided(self) -> bool:
        """Whether all that the claim needs is there; without a claim, whether all runs are."""
        return self.runs == self.planned if self.experiment.primary is None else self.verdict != "undecided"

    @property
    def best_of_the_others(self) -> str | None:
        """The rival with the highest mean on the fresh seeds, of those compared with the primary arm.

        Which one it is, is seen on the same seeds, so that the comparison is hard on the primary arm. The verdict is
        about the best rival of the tuning.
        """
        rivals = [name for name in self.comparisons if name not in self.experiment.outside]
        return max(rivals, key=lambda name: statistics.fmean(self.outcomes[name].figures.values()), default=None)

    @property
    def out_of_reach(self) -> dict[str, list[float]]:
        """The rivals whose tuning chose a learning rate outside of the range that the primary arm chose from.

        Such a difference may be one of rates, and not of what the arms are.
        """
        experiment, found = self.experiment, {}
        if experiment.primary is None:
            return {}
        ours, cells = experiment.arm(experiment.primary), experiment.claimed_cells()
        for name, outcome in self.outcomes.items():
            if name == experiment.primary or name in experiment.outside:
                continue
            rates = set()
            for cell, choice in zip(cells, outcome.choices or [], strict=False):  # none before the tuning
                for key in (key for key in choice if key.split(".")[-1] in LEARNING_RATES):
                    open_to_us = experiment.values(ours, cell, key)
                    if not min(open_to_us) <= choice[key] <= max(open_to_us):
                        rates.add(choice[key])
            if rates:
                found[name] = sorted(rates)
        return found


def summarize(experiment: Experiment, records: Sequence[Record]) -> Summary:
    """The summary of the runs that belong to the experiment as it is declared now; others are left out."""
    outcomes = {arm.name: _outcome(experiment, arm, records) for arm in experiment.arms}
    comparisons = _comparisons(experiment, outcomes)
    best = _best_rival(experiment, outcomes)
    used = sum(outcome.tried + len(outcome.records) + len(outcome.others) for outcome in outcomes.values())
    better = [n for n, each in comparisons.items() if n not in experiment.outside and _below(each)]
    verdict = _verdict(experiment, comparisons, better, best)
    return Summary(experiment, outcomes, comparisons, better, best, verdict, used, planned(experiment), records)


def measured(experiment: Experiment, record: Record) -> float:
    """The measure of a final run, in percent: an accuracy, or 100 where it `started` and 0 where it did not."""
    if experiment.measure == "started":
        return 0.0 if record["result"]["stalled"] else 100.0
    return float(record["result"][experiment.measure])


def _outcome(experiment: Experiment, arm: Arm, records: Sequence[Record]) -> Outcome:
    cells, claimed = experiment.cells(), experiment.claimed_cells()
    tuned = len(arm.trials()) > 1
    tried = sum(len(row) for cell in cells for row in scores(experiment, arm, cell, records)) if tuned else 0
    trials = [_trials(experiment, arm, cell, records) for cell in claimed] if tuned else [[]]
    best = [max(mean for _, mean in each) for each in trials if each]
    by_cell = [chosen(experiment, arm, cell, records) for cell in cells]
    choices = [choice for choice in by_cell if choice is not None]
    if len(choices) < len(cells):
        return Outcome(arm, tried, trials[0], best, None)
    found = {record["key"]: record for record in records}
    final, others, figures = [], [], {}
    for seed in experiment.final_seeds:
        runs = [make_run(experiment, arm, c, w, "final", seed) for c, w in zip(cells, choices, strict=True)]
        there = [found[run.key] for run in runs if run.key in found and run.cell in claimed]
        others += [found[run.key] for run in runs if run.key in found and run.cell not in claimed]
        final += there
        if len(there) == len(claimed):
            figures[seed] = statistics.fmean(measured(experiment, record) for record in there)
    shown = [choices[cells.index(cell)] for cell in claimed]
    return Outcome(arm, tried, trials[0], best, shown, figures, final, others)


def of_role(ends: Mapping[str, Any], name: str, role: str) -> float | None:
    """Of a model's energies, the mean over the hidden layers as it was recorded, or their number of pairs; or that of
    the class vectors."""
    if role == "hidden":
        return ends.get(name if name == "near_duplicates" else f"mean_{name}")
    (vectors,) = [group for group in ends["groups"] if group["role"] == role]
    return vectors[name]


def _trials(
    experiment: Experiment, arm: Arm, cell: Mapping[str, Any], records: Sequence[Record]
) -> list[tuple[dict[str, Any], float]]:
    """The settings that are tried on all tuning seeds, with their mean validation figures."""
    rows = zip(arm.trials(), scores(experiment, arm, cell, records), strict=True)
    return [(choice, statistics.fmean(row)) for choice, row in rows if len(row) == len(experiment.tuning_seeds)]


def _comparisons(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> dict[str, Paired]:
    if experiment.primary is None:
        return {}
    ours, found = outcomes[experiment.primary].figures, {}
    for name, outcome in outcomes.items():
        both = [seed for seed in ours if seed in outcome.figures]
        if name != experiment.primary and both:
            found[name] = paired([ours[seed] for seed in both], [outcome.figures[seed] for seed in both])
    return dict(zip(found, corrected(list(found.values())), strict=True))


def _best_rival(experiment: Experiment, outcomes: Mapping[str, Outcome]) -> str | None:
    """The rival that did best in tuning, the first of equals; without tuning, the first arm beside the primary."""
    rivals = [a.name for a in experiment.arms if a.name not in (experiment.primary, *experiment.outside)]
    if experiment.primary is None or not rivals:
        return None
    if not experiment.tuning_seeds:
        return rivals[0]
    if any(outcomes[name].choices is None for name in rivals):
        return None
    return max(rivals, key=lambda name: outcomes[name].tuned_to or -math.inf)


def _below(each: Paired) -> bool:
    """Whether the primary arm is below the other one by Holm's p."""
    return each.holm is not None and each.holm < 0.05 and each.mean < 0


def _verdict(
    experiment: Experiment, comparisons: Mapping[str, Paired], better: Sequence[str], best: str | None
) -> str:
    complete = len(comparisons) == len(experiment.arms) - 1 and best is not None
    seeds = len(experiment.final_seeds)
    if not complete or any(each.n < seeds for each in comparisons.values()):
        return "undecided"
    claim = comparisons[best]
    assert claim.holm is not None  # there are at least two seeds, or the experiment could claim nothing
    if experiment.nothing in comparisons and _below(comparisons[experiment.nothing]):
        return "harmful"
    return "confirmed" if claim.holm < 0.05 and claim.mean > 0 and not better else "not found"

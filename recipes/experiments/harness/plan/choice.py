"""From tuning runs to chosen settings, and from those to the final runs."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.plan.experiment import Arm, Experiment, Run, make_run, tuning_runs

Record = Mapping[str, Any]


def scores(experiment: Experiment, arm: Arm, cell: Mapping[str, Any], records: Iterable[Record]) -> list[list[float]]:
    """The validation figures of each trial of an arm, in the order of `arm.trials()`."""
    found = {record["key"]: record for record in records}
    rows = []
    for choice in arm.trials():
        runs = [make_run(experiment, arm, cell, choice, "tune", seed) for seed in experiment.tuning_seeds]
        rows.append([float(found[run.key]["result"]["validation"]) for run in runs if run.key in found])
    return rows


def chosen(
    experiment: Experiment, arm: Arm, cell: Mapping[str, Any], records: Iterable[Record]
) -> dict[str, Any] | None:
    """The trial with the best mean validation figure, the first of equals; None before its tuning runs are done."""
    trials = arm.trials()
    if len(trials) == 1:
        return trials[0]
    rows = scores(experiment, arm, cell, records)
    if any(len(row) < len(experiment.tuning_seeds) for row in rows):
        return None
    means = [statistics.fmean(row) for row in rows]
    return trials[means.index(max(means))]


def final_runs(experiment: Experiment, records: Sequence[Record]) -> Iterator[Run]:
    """The final runs of the arms whose settings are chosen, seed by seed, so that what is there is paired."""
    choices = [
        (arm, cell, choice)
        for cell in experiment.cells()
        for arm in experiment.arms
        if (choice := chosen(experiment, arm, cell, records)) is not None
    ]
    for seed in experiment.final_seeds:
        for arm, cell, choice in choices:
            yield make_run(experiment, arm, cell, choice, "final", seed)


def pending(experiment: Experiment, records: Sequence[Record], only: Collection[str] = ()) -> list[Run]:
    """What is to be run next: the tuning runs that are missing, then the final ones; of the arms in `only`, if any."""
    done = {record["key"] for record in records}
    wanted = [arm.name for arm in experiment.arms if not only or arm.name in only]
    tuned = [arm.name for arm in experiment.arms if len(arm.trials()) > 1 and arm.name in wanted]
    runs = [run for run in tuning_runs(experiment) if run.arm in tuned and run.key not in done]
    return runs or [run for run in final_runs(experiment, records) if run.arm in wanted and run.key not in done]


def planned(experiment: Experiment) -> int:
    """How many runs the experiment has in all."""
    cells = len(experiment.cells())
    trials = sum(len(arm.trials()) for arm in experiment.arms if len(arm.trials()) > 1)
    return cells * (trials * len(experiment.tuning_seeds) + len(experiment.arms) * len(experiment.final_seeds))

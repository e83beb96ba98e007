"""Arms over several columns: one per combination of the factors, or one per further measure of a run.

Each arm is compared with `nothing` in each column, paired by seed, with Holm's correction over the whole table.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.plan.experiment import Experiment, label
from harness.statistics.inference import Paired, corrected, paired
from harness.statistics.summary import Outcome, Record, Summary, measured, of_role

Figures = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Column:
    """Attributes: heads, what stands above it; by_arm, the figures of each arm's final runs; start, the mean spread
    with which those of doing nothing begin."""

    heads: str
    by_arm: Mapping[str, Figures]
    start: float | None = None


def by_cell(summary: Summary) -> list[Column]:
    """The measure in each combination of the factors."""
    experiment, found = summary.experiment, []
    for cell in experiment.cells():
        by_arm, start = {}, None
        for name, outcome in summary.outcomes.items():
            records = [r for r in (*outcome.records, *outcome.others) if r["config"]["cell"] == cell]
            by_arm[name] = {r["config"]["seed"]: measured(experiment, r) for r in records}
            if name == experiment.nothing:
                start = _start(experiment, records)
        found.append(Column(label(cell), by_arm, start))
    return found


def _start(experiment: Experiment, records: Sequence[Record]) -> float | None:
    """The mean spread before the training, of the runs that were recorded with it."""
    starts = [start for r in records if (start := r["result"]["energies"].get("before")) is not None]
    spreads = [spread for s in starts if (spread := of_role(s, "spread", experiment.role)) is not None]
    return statistics.fmean(spreads) if spreads else None


def by_measure(summary: Summary) -> list[Column]:
    """The further measures in the claimed combinations; a seed without a number in one of them is left out."""
    found = []
    for key, says in summary.experiment.further.items():
        found.append(Column(says, {name: _of(outcome, key) for name, outcome in summary.outcomes.items()}))
    return found


def differences(summary: Summary, columns: list[Column]) -> dict[tuple[str, str], Paired]:
    """Each arm minus `nothing`, by arm and head of the column, on the seeds that both have."""
    nothing, found = summary.experiment.nothing, {}
    if nothing is None:
        return {}
    for column in columns:
        base = column.by_arm[nothing]
        for name, figures in column.by_arm.items():
            both = [seed for seed in figures if seed in base]
            if name != nothing and both:
                found[name, column.heads] = paired([figures[s] for s in both], [base[s] for s in both])
    return dict(zip(found, corrected(list(found.values())), strict=True))


def of_interaction(summary: Summary) -> Paired | None:
    """By how much the primary arm's gain over `nothing` is larger in the claimed combinations than in the others."""
    experiment = summary.experiment
    if not experiment.claimed or experiment.primary is None or experiment.nothing is None:
        return None
    claimed = {label(cell) for cell in experiment.claimed_cells()}
    gains = {c.heads: _gains(c, experiment.primary, experiment.nothing) for c in by_cell(summary)}
    seeds = [s for s in experiment.final_seeds if all(s in gain for gain in gains.values())]
    if not seeds or len(claimed) == len(gains):
        return None
    here = [statistics.fmean(gains[name][s] for name in claimed) for s in seeds]
    there = [statistics.fmean(gain[s] for name, gain in gains.items() if name not in claimed) for s in seeds]
    return paired(here, there)


def _gains(column: Column, ours: str, theirs: str) -> dict[int, float]:
    base = column.by_arm[theirs]
    return {seed: value - base[seed] for seed, value in column.by_arm[ours].items() if seed in base}


def _of(outcome: Outcome, key: str) -> dict[int, float]:
    by_seed: dict[int, list[Any]] = {}
    for record in outcome.records:
        by_seed.setdefault(record["config"]["seed"], []).append(record["result"].get(key))
    return {seed: statistics.fmean(v) for seed, v in by_seed.items() if all(value is not None for value in v)}

"""A rule for the weight of MHE, from curves over it: the ratio of the gradients that is worth aiming at.

Note [Which ratio]. `MHETrainer` logs `mhe_gradient_ratio`, the norm of the penalty's gradient over the task's. Under
a weight that acts, the energy falls and the ratio with it: ten times the weight gave 2.6 to 4.4 times the ratio
at step 64. So the ratio of a weight is here what it would be if it did not act: the weight times the ratio per unit of
weight that the smallest one gives. That is in proportion to the weight, and 64 steps with the smallest one say it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.plan.experiment import Experiment
from harness.runs.store import Store
from harness.statistics.summary import Outcome, summarize

CURVES = "lambda_curves"
STEP = 64  # Trainer's logs have the ratio at the powers of two
PROBE = 0.01  # a weight that hardly acts, to measure the ratio with: the smallest one of the curves
RATIOS = [10 ** (exponent / 4) for exponent in range(-12, 5)]  # 0.001 to 10, what the rule may aim at
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One weight on one curve: its ratio at step 64 (see Note [Which ratio]) and the validation gain over no penalty.

    `gain` is the mean over the seeds of the paired difference in points; `standard` is that over the standard
    deviation, across the seeds, of the validation figure without a penalty.
    """

    weight: float
    ratio: float
    gain: float
    standard: float


def ratio_at_step(record: Record) -> float | None:
    """The ratio of the gradients at step 64, if the run logged one there."""
    found = [entry.get("mhe_gradient_ratio") for entry in record["result"]["log"] if entry["step"] == STEP]
    return found[0] if found else None


def curves(experiment: Experiment, records: Sequence[Record]) -> dict[str, list[Point]]:
    """By part, the points of its curve whose runs are all there, by growing weight."""
    summary = summarize(experiment, records)
    found = {}
    for cell in experiment.cells():
        name = cell["part"]["name"]
        base = _validation(summary.outcomes[experiment.nothing or ""], cell)
        runs = [_in(outcome, cell) for outcome in summary.outcomes.values() if outcome.arm.name != experiment.nothing]
        runs = sorted((there for there in runs if there), key=_weight)
        unit = _per_unit(runs[0]) if runs else None
        points = [] if unit is None else [_point(there, base, unit) for there in runs]
        found[name] = [point for point in points if point is not None]
    return found


def best_ratio(found: Mapping[str, Sequence[Point]]) -> float | None:
    """The ratio with the largest mean over the curves of the standardised gain, the smallest of equals.

    Between two points of a curve the gain is on a line over the logarithm of the ratio; below its first point the line
    goes on to 0, a ratio of a hundredth of it; above its last it stays. None while a curve has fewer than two points.
    """
    if not found or any(len(points) < 2 for points in found.values()):
        return None
    means = [statistics.fmean(gain_at(points, ratio) for points in found.values()) for ratio in RATIOS]
    return RATIOS[means.index(max(means))]


def gain_at(points: Sequence[Point], ratio: float) -> float:
    """The standardised gain of one curve at a ratio."""
    at = sorted((math.log(point.ratio), point.standard) for point in points)
    at = [(at[0][0] - math.log(100), 0.0), *at]
    x = math.log(ratio)
    if x <= at[0][0]:
        return at[0][1]
    for (left, low), (right, high) in itertools.pairwise(at):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return at[-1][1]


def derived() -> float | None:
    """The rule's ratio by the results that are there, to three digits; None while a run of the curves is missing."""
    from declared.lambda_curves import EXPERIMENT

    records = Store(CURVES).records()
    summary = summarize(EXPERIMENT, records)
    if summary.runs < summary.planned:
        return None
    best = best_ratio(curves(EXPERIMENT, records))
    return None if best is None else float(f"{best:.3g}")


def weight_for(ratio: float, probed: float) -> float:
    """The weight with a wanted ratio, when the probe's weight gave `probed`."""
    return PROBE * ratio / probed


def _in(outcome: Outcome, cell: Mapping[str, Any]) -> list[Record]:
    return [record for record in outcome.records if record["config"]["cell"] == cell]


def _weight(there: Sequence[Record]) -> float:
    return there[0]["config"]["settings"]["penalty"]["hidden_weight"]


def _per_unit(there: Sequence[Record]) -> float | None:
    """The ratio at step 64 over the weight, geometric mean of the seeds."""
    ratios = [ratio for record in there if (ratio := ratio_at_step(record))]
    if not ratios:
        return None
    return math.exp(statistics.fmean(map(math.log, ratios))) / _weight(there)


def _validation(outcome: Outcome, cell: Mapping[str, Any]) -> dict[int, float]:
    return {record["config"]["seed"]: record["result"]["validation"] for record in _in(outcome, cell)}


def _point(there: Sequence[Record], base: Mapping[int, float], unit: float) -> Point | None:
    validation = {record["config"]["seed"]: record["result"]["validation"] for record in there}
    seeds = [seed for seed in validation if seed in base]
    if len(seeds) < 2:
        return None
    gain = statistics.fmean(validation[seed] - base[seed] for seed in seeds)
    deviation = statistics.stdev(base.values()) or math.nan
    return Point(_weight(there), unit * _weight(there), gain, gain / deviation)

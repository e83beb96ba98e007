"""A rule for the weight of MHE, from curves over it: the ratio of the gradients that is worth aiming at.

`MHETrainer` logs `mhe_gradient_ratio`, the norm of the penalty's gradient over the task's. The ratio at step 64 is
nearly proportional to the weight, so a few steps with a small weight say which weight gives a wanted ratio.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.experiment import Experiment, ExperimentError
from harness.store import Store
from harness.summary import Outcome, summarize

CURVES = "lambda_curves"
STEP = 64  # Trainer's logs have the ratio at the powers of two
PROBE = 1e-3  # a weight that changes nothing, to measure the ratio with
RATIOS = [10 ** (exponent / 4) for exponent in range(-12, 5)]  # 0.001 to 10, what the rule may aim at
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One weight on one curve: the mean ratio at step 64, and the validation gain over no penalty in deviations.

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
        points = [_point(outcome, cell, base) for outcome in summary.outcomes.values()]
        found[name] = sorted((p for p in points if p is not None), key=lambda point: point.weight)
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


def weight_for(ratio: float | None, probed: float) -> float:
    """The weight that gives a wanted ratio, when the probe's weight gave `probed`.

    Raises:
        ExperimentError: there is no ratio yet.
    """
    if ratio is None:
        raise ExperimentError(f"the rule's ratio comes from {CURVES}, whose runs are not all there: run it first")
    return PROBE * ratio / probed


def _validation(outcome: Outcome, cell: Mapping[str, Any]) -> dict[int, float]:
    there = (record for record in outcome.records if record["config"]["cell"] == cell)
    return {record["config"]["seed"]: record["result"]["validation"] for record in there}


def _point(outcome: Outcome, cell: Mapping[str, Any], base: Mapping[int, float]) -> Point | None:
    there = [record for record in outcome.records if record["config"]["cell"] == cell]
    ratios = [ratio for record in there if (ratio := ratio_at_step(record))]
    seeds = [record["config"]["seed"] for record in there if record["config"]["seed"] in base]
    if len(seeds) < 2 or len(ratios) < len(there):
        return None
    validation = _validation(outcome, cell)
    gain = statistics.fmean(validation[seed] - base[seed] for seed in seeds)
    deviation = statistics.stdev(base.values()) or math.nan
    weight = there[0]["config"]["settings"]["penalty"]["hidden_weight"]
    return Point(weight, math.exp(statistics.fmean(map(math.log, ratios))), gain, gain / deviation)

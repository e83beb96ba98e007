"""Paired comparisons across seeds: intervals, Holm's correction, effect sizes and power."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
DRAWS = 10_000


@dataclass(frozen=True)
class Paired:
    """Differences of two arms over the seeds that both have.

    Attributes:
        low, high: 95 % t interval of the mean; NaN with fewer than two seeds.
        boot_low, boot_high: 95 % bootstrap interval (percentiles of the means of resampled differences).
        p: of the two-sided paired t test. holm: the same after Holm's correction, None before it is known.
        effect: mean over standard deviation of the differences (Cohen's d_z).
        ahead: seeds with a difference above zero.
        detectable: smallest true difference that the test finds with a probability of 80 %, at this spread and n.
    """

    n: int
    mean: float
    low: float
    high: float
    boot_low: float
    boot_high: float
    p: float
    effect: float
    ahead: int
    detectable: float
    holm: float | None = None


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two arms, whose figures are in the order of the same seeds.

    Raises:
        ValueError: they are not of one length, or empty.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"paired figures must be as many, and at least one; got {len(first)} and {len(second)}")
    differences = np.asarray(first, float) - np.asarray(second, float)
    n, mean = len(differences), float(differences.mean())
    ahead = int((differences > 0).sum())
    if n < 2:
        return Paired(n, mean, *[math.nan] * 6, ahead, math.nan)
    deviation = float(differences.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)
    low, high = bootstrap(differences)
    # Differences that are all the same have no spread: p is 0, or 1 if they are zero.
    t = mean / (deviation / math.sqrt(n)) if deviation else (math.inf if mean else 0.0)
    return Paired(
        n=n,
        mean=mean,
        low=mean - half,
        high=mean + half,
        boot_low=low,
        boot_high=high,
        p=float(2 * stats.t.sf(abs(t), n - 1)),
        effect=mean / deviation if deviation else math.copysign(math.inf, mean) if mean else 0.0,
        ahead=ahead,
        detectable=detectable(n) * deviation,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of one arm and the half width of its 95 % t interval, NaN for a single value."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * stats.sem(values))


def bootstrap(differences: np.ndarray, draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile interval of the mean, always from the same draws."""
    index = np.random.default_rng(0).integers(0, len(differences), (draws, len(differences)))
    low, high = np.quantile(differences[index].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: `max over smaller ones of (m - rank) * p`, at most 1.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6, 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def corrected(comparisons: Sequence[Paired]) -> list[Paired]:
    """The comparisons with Holm's p over all of them; those without a test (one seed) take no part."""
    tested = [place for place, each in enumerate(comparisons) if not math.isnan(each.p)]
    found = dict(zip(tested, holm([comparisons[place].p for place in tested]), strict=True))
    return [replace(each, holm=found.get(place)) for place, each in enumerate(comparisons)]


def power(effect: float, n: int, alpha: float = 1 - LEVEL) -> float:
    """Probability that a two-sided paired t test of n pairs finds a true effect (mean over deviation).

    The tails of the noncentral t distribution, as a mean over the sample deviation: scipy's own are NaN far out.
    """
    edge, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect * math.sqrt(n)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    deviation = np.sqrt(stats.chi2.ppf((1 + nodes) / 2, n - 1) / (n - 1))
    found = stats.norm.sf(edge * deviation - shift) + stats.norm.cdf(-edge * deviation - shift)
    return float((weights / 2 * found).sum())


@functools.cache
def detectable(n: int, wanted: float = 0.8) -> float:
    """Smallest effect (mean over deviation) that a paired t test of n pairs finds with probability `wanted`."""
    if n < 2:
        return math.nan
    return float(optimize.brentq(lambda effect: power(effect, n) - wanted, 1e-6, 50.0))

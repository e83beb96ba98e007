"""The experiments' statistics are the textbook's: intervals, Holm's correction, power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from harness.statistics.inference import bootstrap, corrected, detectable, holm, interval, paired, power
from scipy import stats

OURS = [86.1, 86.4, 85.9, 86.6, 86.2, 86.3, 85.7, 86.5]
THEIRS = [85.2, 85.9, 85.4, 85.1, 85.6, 85.8, 85.3, 86.6]


def test_the_paired_comparison_is_scipys() -> None:
    found, oracle = paired(OURS, THEIRS), stats.ttest_rel(OURS, THEIRS)
    inside = oracle.confidence_interval(0.95)
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((inside.low, inside.high), rel=1e-12)
    differences = np.subtract(OURS, THEIRS)
    assert found.mean == pytest.approx(differences.mean())
    assert found.effect == pytest.approx(oracle.statistic / math.sqrt(8))  # d_z = t / sqrt(n)
    assert (found.ahead, found.n) == (7, 8)
    assert paired(THEIRS, OURS).mean == -found.mean


def test_the_interval_of_one_arm_is_scipys() -> None:
    mean, half = interval(OURS)
    low, high = stats.t.interval(0.95, 7, loc=np.mean(OURS), scale=stats.sem(OURS))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)


def test_the_bootstrap_is_scipys_percentile_interval() -> None:
    differences = np.subtract(OURS, THEIRS)
    oracle = stats.bootstrap((differences,), np.mean, n_resamples=100_000, method="percentile", random_state=1)
    assert bootstrap(differences) == pytest.approx(tuple(oracle.confidence_interval), abs=0.02)
    assert bootstrap(differences) == bootstrap(differences), "it would change from one table to the next"


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    # By hand: 4 x 0.01, 3 x 0.013 raised to what stands before it, 2 x 0.03, 0.04 raised likewise.
    assert holm([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    draws = np.random.default_rng(0)
    for _ in range(50):
        p = draws.uniform(0, 0.1, draws.integers(1, 8)).tolist()
        adjusted = holm(p)
        for alpha in (0.01, 0.05, 0.1):
            rejected = set()
            for rank, index in enumerate(np.argsort(p)):
                if p[index] > alpha / (len(p) - rank):
                    break
                rejected.add(int(index))
            assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected


def test_holm_is_over_the_comparisons_that_have_a_test() -> None:
    whole, single = paired(OURS, THEIRS), paired([86.0], [85.0])
    assert [each.holm for each in corrected([whole, single, whole])] == [
        min(1, 2 * whole.p),
        None,
        min(1, 2 * whole.p),
    ]


def test_power_is_the_published_one() -> None:
    # G*Power 3.1, t test of matched pairs, two-sided, alpha 0.05, power 0.80: 34 pairs for d 0.5, 15 for 0.8.
    for effect, pairs in ((0.5, 34), (0.8, 15)):
        assert power(effect, pairs - 1) < 0.8 <= power(effect, pairs)
    assert power(0.0, 10) == pytest.approx(0.05, abs=1e-5)
    for effect in (0.3, 1.0, 1.5):  # where scipy's noncentral t is finite
        edge, shift = stats.t.ppf(0.975, 9), effect * math.sqrt(10)
        assert power(effect, 10) == pytest.approx(
            stats.nct.sf(edge, 9, shift) + stats.nct.cdf(-edge, 9, shift), abs=1e-5
        )
    for n in (2, 3, 8, 20):
        assert power(detectable(n), n) == pytest.approx(0.8)


def test_power_is_the_share_of_simulated_tests_that_find_the_effect() -> None:
    draws = np.random.default_rng(0).normal(detectable(8), 1.0, (20_000, 8))
    share = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05)
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 20_000))


def test_one_seed_or_no_spread_claims_nothing_that_is_not_there() -> None:
    single = paired([86.0], [85.0])
    assert single.mean == 1.0
    assert math.isnan(single.p)
    assert math.isnan(single.low)
    same = paired([1.0, 2.0], [1.0, 2.0])
    assert (same.p, same.mean, same.effect) == (1.0, 0.0, 0.0)
    assert paired([2.0, 3.0], [1.0, 2.0]).p == 0.0
    with pytest.raises(ValueError, match="as many"):
        paired([1.0], [1.0, 2.0])

"""Experiments with factors, a claim in one of them, and further measures; and the rule that is drawn from curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.plan.choice import final_runs, tuning_runs
from harness.plan.experiment import Arm, Experiment, ExperimentError, Run
from harness.report import figures
from harness.report.document import block
from harness.statistics import rule
from harness.statistics.breakdown import by_cell, by_measure, differences, of_interaction
from harness.statistics.inference import holm
from harness.statistics.summary import Summary, summarize
from PIL import Image
from scipy import stats

from tests.recipes import toy_experiment as toys

MARGINS = [1, 2, 3]
SEEDS = [10, 11, 12, 13]
Figure = Callable[[Run], float]


def crossed(**changes: Any) -> Experiment:
    """Two arms at three margins, the claim at the first."""
    content: dict[str, Any] = {
        "name": "toy", "title": "Toy", "question": "?", "task": "verifying",
        "settings": {"arm": "", "margin": 0, "size": 0},
        "arms": [Arm(name, name, {"arm": name}, {"size": [1, 2]}) for name in ("ours", "none")],
        "tuning_seeds": [0, 1], "final_seeds": SEEDS, "factors": {"margin": MARGINS}, "claimed": {"margin": 1},
        "primary": "ours", "nothing": "none", "further": {"auc": "AUC, %"},
    }  # fmt: skip
    return Experiment(**{**content, **changes})


def record(run: Run, **result: Any) -> dict[str, Any]:
    energies = {"after": {"near_duplicates": 0, "mean_score": 1.0}}
    return {
        "key": run.key, "config": run.config(), "seconds": 1.0, "cpu_seconds": 1.0, "peak_memory": {"mb": 100},
        "versions": {"torch": "2.13.0"}, "result": {"diverged": None, "energies": energies, "log": [], **result},
    }  # fmt: skip


def wiggle(run: Run) -> float:
    """What a run has of its own: enough for a spread of the differences."""
    return 0.1 * ((run.seed * (3 if run.arm == "ours" else 5)) % 7)


def four_ahead_at_one(run: Run) -> float:
    gain = {1: 4.0, 2: 1.0, 3: 0.0}[run.cell["margin"]] if run.arm == "ours" else 0.0
    return 50 + 10 * run.cell["margin"] + gain + wiggle(run)


def finished(
    experiment: Experiment, figure: Figure = four_ahead_at_one, auc: Any = lambda run: 90.0 + wiggle(run)
) -> Any:
    # Another setting is the better one at each margin and for each arm.
    tuning = [
        record(run, validation=float(run.choice["size"] == 1 + (run.cell["margin"] + len(run.arm)) % 2))
        for run in tuning_runs(experiment)
    ]
    return tuning + [
        record(run, validation=0.0, test=figure(run), auc=auc(run)) for run in final_runs(experiment, tuning)
    ]


def gains(summary: Summary, margin: int) -> list[float]:
    """By seed, from the records and nothing else."""
    found = {}
    for outcome in summary.outcomes.values():
        for each in (*outcome.records, *outcome.others):
            config = each["config"]
            found[config["arm"], config["cell"]["margin"], config["seed"]] = each["result"]["test"]
    return [found["ours", margin, seed] - found["none", margin, seed] for seed in SEEDS]


def test_a_claim_in_one_combination_is_about_that_one() -> None:
    experiment = crossed()
    records = finished(experiment)
    summary = summarize(experiment, records)
    assert summary.comparisons["none"].mean == pytest.approx(statistics.fmean(gains(summary, 1)))
    assert (summary.verdict, summary.runs) == ("confirmed", summary.planned)
    everywhere = summarize(crossed(claimed={}), records)
    wanted = statistics.fmean(statistics.fmean(gains(summary, m)) for m in MARGINS)
    assert everywhere.comparisons["none"].mean == pytest.approx(wanted)
    assert everywhere.runs == summary.runs
    for outcome in summary.outcomes.values():
        assert outcome.choices == [{"size": 1 + (1 + len(outcome.arm.name)) % 2}], "of another margin"
        assert {each["config"]["cell"]["margin"] for each in outcome.records} == {1}
    with pytest.raises(ExperimentError, match="no combination of factors has"):
        crossed(claimed={"margin": 9})


def test_each_combination_is_compared_by_seed_and_corrected_over_all() -> None:
    summary = summarize(crossed(), finished(crossed()))
    found = differences(summary, by_cell(summary))
    assert set(found) == {("ours", f"margin {m}") for m in MARGINS}
    oracle = [stats.ttest_1samp(gains(summary, m), 0).pvalue for m in MARGINS]
    for margin, p, adjusted in zip(MARGINS, oracle, holm(oracle), strict=True):
        each = found["ours", f"margin {margin}"]
        assert each.mean == pytest.approx(statistics.fmean(gains(summary, margin)))
        assert each.p == pytest.approx(p)
        assert each.holm == pytest.approx(adjusted)
    row = next(line for line in block(summary).splitlines() if line.startswith("| ours | "))
    assert row.count("*") == sum(p < 0.05 for p in holm(oracle)) == 2


def test_the_interaction_is_the_gain_in_the_claimed_combination_less_that_in_the_others() -> None:
    summary = summarize(crossed(), finished(crossed()))
    rest = [statistics.fmean(pair) for pair in zip(gains(summary, 2), gains(summary, 3), strict=True)]
    wanted = [a - b for a, b in zip(gains(summary, 1), rest, strict=True)]
    found = of_interaction(summary)
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean(wanted))
    assert found.p == pytest.approx(stats.ttest_1samp(wanted, 0).pvalue)
    assert f"differs by {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}) points" in block(summary)
    assert of_interaction(summarize(crossed(claimed={}), finished(crossed()))) is None


def test_what_is_missing_is_left_out_and_not_guessed() -> None:
    experiment = crossed()
    records = finished(experiment)
    at_two = [r for r in records if r["config"]["stage"] == "final" and r["config"]["cell"]["margin"] == 2]
    part = [r for r in records if r is not at_two[0]]
    summary = summarize(experiment, part)
    assert summary.comparisons["none"].n == 4, "a run of another combination was asked for"
    assert differences(summary, by_cell(summary))["ours", "margin 2"].n == 3
    interaction = of_interaction(summary)
    assert interaction is not None
    assert interaction.n == 3
    empty = summarize(experiment, [r for r in records if r["config"]["stage"] == "tune"])
    assert differences(empty, by_cell(empty)) == {}
    assert of_interaction(empty) is None
    assert "Undecided" in block(empty)


def test_further_measures_are_of_the_claimed_combination() -> None:
    def auc(run: Run) -> float | None:
        if run.seed == 10:
            return None  # of a run that diverged
        return 80.0 + run.cell["margin"] + wiggle(run)

    summary = summarize(crossed(), finished(crossed(), auc=auc))
    (column,) = by_measure(summary)
    assert column.by_arm["none"] == pytest.approx({s: 81.0 + 0.1 * ((s * 5) % 7) for s in SEEDS[1:]})
    assert "AUC, %" in block(summary)


def test_the_figure_of_a_factor_is_the_mean_at_each_value() -> None:
    summary = summarize(crossed(), finished(crossed()))
    curve = dict(figures.numbers(summary)["curves"]["none"])
    assert curve == pytest.approx(
        {m: 50 + 10 * m + statistics.fmean(0.1 * ((s * 5) % 7) for s in SEEDS) for m in MARGINS}
    )


def test_the_best_rival_is_best_over_all_combinations_of_the_claim() -> None:
    arms = [Arm(name, name, {"arm": name}, {"size": [1, 2]}) for name in ("ours", "none", "other")]
    experiment = crossed(arms=arms, claimed={})
    level = {("none", 1): 90.0, ("other", 1): 80.0, ("none", 2): 50.0, ("other", 2): 85.0}
    tuning = [
        record(
            run, validation=level.get((run.arm, run.cell["margin"]), 60.0) + run.choice["size"] * run.cell["margin"]
        )
        for run in tuning_runs(experiment)
    ]
    summary = summarize(experiment, tuning)
    assert summary.best_rival == "other", "the first combination decided"
    assert summary.outcomes["other"].tuned_to == pytest.approx((80 + 2 + 85 + 4 + 60 + 6) / 3)
    assert summary.outcomes["other"].choices == [{"size": 2}] * 3


def test_a_column_says_how_redundant_the_model_of_doing_nothing_is_before_the_training() -> None:
    """What there is to gain would have to be looked up in the records; an arm's own start says nothing of it."""
    experiment = crossed()
    records = finished(experiment)
    for each in records:
        margin = each["config"]["cell"]["margin"]
        spread = margin / 4 + each["config"]["seed"] / 10 if each["config"]["arm"] == "none" else 1e9
        each["result"]["energies"]["before"] = {"mean_spread": spread}
    expected = " | ".join(f"{margin / 4 + statistics.fmean(SEEDS) / 10:.2f}" for margin in MARGINS)
    assert f"| *spread at the start* | {expected} |" in block(summarize(experiment, records))
    assert "spread at the start" not in block(summarize(experiment, finished(experiment)))


# The rule.

WEIGHTS = [0.1, 1.0, 10.0]
UNIT = {"a": 0.02, "b": 0.5}  # the ratio at a weight of 1
BEST = 0.2  # the ratio that both parts gain most at


def parabola(ratio: float) -> float:
    return 2.0 - math.log10(ratio / BEST) ** 2


def curves(gain: Callable[[float], float] = parabola) -> tuple[Experiment, list[dict[str, Any]]]:
    """Two parts whose gain follows from the ratio alone, in standard deviations of 1 and of 5 points."""
    experiment = Experiment(
        name=rule.CURVES, title="Toy", question="?", task="weighing", settings={"part": {}, "penalty": None},
        arms=[Arm("none", "none"), *(Arm(f"w{w:g}", f"{w:g}", {"penalty": {"hidden_weight": w}}) for w in WEIGHTS)],
        final_seeds=SEEDS, factors={"part": [{"name": "a"}, {"name": "b"}]}, nothing="none",
    )  # fmt: skip
    records = []
    for run in final_runs(experiment, []):
        name = run.cell["part"]["name"]
        ratio = None if run.arm == "none" else UNIT[name] * run.settings["penalty"]["hidden_weight"]
        smallest = UNIT[name] * WEIGHTS[0]
        logged = None if ratio is None else smallest * (ratio / smallest) ** 0.6  # a weight that acts lowers its own
        deviation = {"a": 1.0, "b": 5.0}[name]
        spread = deviation * (run.seed - 11.5) / statistics.stdev(SEEDS)
        figure = 70 + spread + (0 if ratio is None else deviation * gain(ratio))
        log = [{"step": 64, "loss": 1.0, **({} if ratio is None else {"mhe_gradient_ratio": logged})}]
        records.append(record(run, validation=figure, test=figure, log=log))
    return experiment, records


def test_a_curve_is_the_paired_gain_in_validation_over_the_ratio() -> None:
    found = rule.curves(*curves())
    for name, points in found.items():
        assert [point.weight for point in points] == WEIGHTS
        for point in points:
            assert point.ratio == pytest.approx(UNIT[name] * point.weight)
            assert point.standard == pytest.approx(parabola(point.ratio))
            assert point.gain == pytest.approx({"a": 1.0, "b": 5.0}[name] * parabola(point.ratio))


def test_the_rule_aims_at_the_ratio_with_the_largest_mean_gain() -> None:
    experiment, records = curves()
    best = rule.best_ratio(rule.curves(experiment, records))
    assert best is not None
    # The slow way: numpy's interpolation of each curve on a fine grid.
    grid = np.linspace(-3, 1, 401)
    at = {n: np.log10([UNIT[n] * w for w in WEIGHTS]) for n in UNIT}
    mean = sum(np.interp(grid, at[n], [parabola(10**x) for x in at[n]]) for n in UNIT)
    assert abs(math.log10(best) - grid[int(np.argmax(mean))]) <= 0.25
    assert "**Rule: aim at a ratio of" in block(summarize(experiment, records))
    assert "The rule waits for all runs" in block(summarize(experiment, records[:-1]))
    assert rule.best_ratio(rule.curves(experiment, records[:4])) is None


def test_where_every_weight_does_harm_the_rule_aims_at_the_least() -> None:
    assert rule.best_ratio(rule.curves(*curves(lambda ratio: -ratio))) == pytest.approx(0.001, rel=0.3)


def test_the_weight_is_in_proportion_to_the_ratio() -> None:
    assert rule.weight_for(0.1, probed=1e-4) == pytest.approx(1000 * rule.PROBE)
    assert rule.weight_for(0.2, probed=1e-4) == pytest.approx(2000 * rule.PROBE)


@pytest.mark.slow
def test_a_figure_is_drawn_of_every_kind_and_says_its_numbers(tmp_path: Path) -> None:
    kinds = [summarize(crossed(), finished(crossed()))]
    words = {"settings": {"arm": "", "size": 0, "head": ""}, "factors": {"head": ["plain", "normalised"]}}
    for toy in (toys.toy(**words), toys.toy()):  # words, and nothing to draw a curve over
        tuning = toys.tuned(toy, toys.figure)
        kinds.append(summarize(toy, toys.finished(toy, tuning, lambda arm, seed: 80.0 + seed)))
    shown = [figures.numbers(each)["curves"] for each in kinds]
    assert [list(each) for each in shown] == [["ours", "none"], ["ours", "first", "second"], []]
    assert [value for value, _ in shown[1]["first"]] == ["plain", "normalised"]
    widths = []
    for summary in (*kinds, summarize(*curves())):
        path, content = tmp_path / f"{summary.experiment.name}.png", figures.numbers(summary)
        figures.draw(content, path)
        assert figures.digest_of(path) == figures.digest(content)
        with Image.open(path) as image:
            widths.append(image.width)
    assert widths == [1210, 1210, 605, 1210], "a panel without curves, or curves without a panel"
    content = figures.of_all([summarize(crossed(), finished(crossed()))])
    assert list(content["rows"]["Toy"]) == ["doing nothing", "the best of the others"]
    figures.draw_all(content, tmp_path / "overview.png")
    assert figures.digest_of(tmp_path / "overview.png") == figures.digest(content)

"""The figure of an experiment, and in its metadata a digest of the numbers in it, by which it is checked."""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.plan.experiment import Arm
from harness.statistics import breakdown, rule
from harness.statistics.inference import Paired
from harness.statistics.summary import Outcome, Summary, measured

_KEY = "Numbers"
_VALIDATION = "validation accuracy, %, at the better rate"
Numbers = dict[str, Any]


def numbers(summary: Summary) -> Numbers:
    """What the figure shows: paired differences; and validation over a penalty's weight, or starts over the rate."""
    differences = {name: _rounded(each) for name, each in summary.comparisons.items() if each.n > 1}
    experiment = summary.experiment
    if experiment.name == rule.CURVES:
        return _over_weights(summary)
    started = experiment.measure == "started"
    read = functools.partial(_started, summary) if started else _curve
    axes = ["learning rate", "seeds that started, %"] if started else ["weight λ of the penalty", _VALIDATION]
    if len(experiment.factors) == 1:
        read = functools.partial(_over_factor, summary)
        axes = [*map(_last_part, experiment.factors), experiment.called]
    curves = {name: curve for name, outcome in summary.outcomes.items() if len(curve := read(outcome)) > 1}
    return {
        "title": experiment.title, "primary": experiment.primary, "differences": differences, "curves": curves,
        "axes": axes,
    }  # fmt: skip


def has_content(content: Numbers) -> bool:
    """Whether there is anything to draw."""
    return bool(content["differences"] or content["curves"])


def digest(content: Numbers) -> str:
    """A hash of the numbers."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str | None:
    """The digest that a figure was saved with; None without one, or without the figure."""
    if not path.is_file():
        return None
    from PIL import Image

    with Image.open(path) as image:
        return image.info.get(_KEY)


def draw(content: Numbers, path: Path) -> None:
    """Draw an experiment: differences on the left, curves on the right where there are any."""
    plt = _pyplot()
    panels = 2 if content["curves"] else 1
    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.2), squeeze=False, layout="constrained")
    left, right = axes[0, 0], axes[0, -1]
    figure.suptitle(content["title"])
    if "other_curves" in content:
        _draw_curves(left, content["other_curves"], content["other_axes"])
    else:
        _draw_differences(left, content["differences"], f"{content['primary']} minus the arm: points, 95 % t interval")
    if content["curves"]:
        _draw_curves(right, content["curves"], content["axes"])
    _save(figure, content, path)


def of_all(summaries: Sequence[Summary]) -> Numbers:
    """By experiment that is decided: the primary arm minus doing nothing, and minus the best of the others."""
    rows = {}
    for summary in summaries:
        against = {"doing nothing": summary.experiment.nothing, "the best of the others": summary.best_of_the_others}
        if summary.decided and summary.experiment.primary is not None:
            found = {says: summary.comparisons[name] for says, name in against.items() if name is not None}
            rows[summary.experiment.title] = {says: _rounded(each) for says, each in found.items()}
    return {"title": "MHE: paired difference in points, 95 % t interval", "rows": rows}


def draw_all(content: Numbers, path: Path) -> None:
    """Draw all experiments: a panel for each of the two comparisons, a row for each experiment."""
    plt = _pyplot()
    titles = list(content["rows"])
    panels = list(dict.fromkeys(says for row in content["rows"].values() for says in row))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(11, 1.4 + 0.45 * len(titles)), sharey=True, squeeze=False, layout="constrained"
    )
    figure.suptitle(content["title"], fontsize="medium")
    for panel, says in zip(axes.flat, panels, strict=True):
        _draw_differences(panel, {title: content["rows"][title][says] for title in titles}, f"minus {says}")
    _save(figure, content, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, content: Numbers, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={_KEY: digest(content)})
    _pyplot().close(figure)


def _rounded(each: Paired) -> list[float]:
    return [round(value, 6) for value in (each.mean, each.low, each.high)]


def _draw_differences(panel: Any, differences: Numbers, says: str) -> None:
    names = list(differences)
    for place, name in enumerate(reversed(names)):
        mean, low, high = differences[name]
        panel.plot([low, high], [place, place], color="tab:blue")
        panel.plot(mean, place, "o", color="tab:blue")
    panel.axvline(0, color="grey", linewidth=0.8)
    panel.set_yticks(range(len(names)), list(reversed(names)))
    panel.set_xlabel(says)


def _draw_curves(panel: Any, curves: Numbers, axes: list[str]) -> None:
    for name, curve in curves.items():
        panel.plot([point[0] for point in curve], [point[1] for point in curve], "o-", label=name)
    values = [point[0] for curve in curves.values() for point in curve if not isinstance(point[0], str)]
    if values and max(values) > 10 * min(values):
        panel.set_xscale("log")
    panel.legend(fontsize="small")
    panel.set_xlabel(axes[0])
    panel.set_ylabel(axes[1])


def _over_weights(summary: Summary) -> Numbers:
    """Each part's gain over its weights, and over the ratios of the gradients that these gave."""
    found = rule.curves(summary.experiment, summary.records)
    curves, others = (
        {
            name: [[round(getattr(p, at), 6), round(p.gain, 6)] for p in points]
            for name, points in found.items()
            if points
        }
        for at in ("ratio", "weight")
    )
    gain = "gain in validation accuracy, points"
    return {
        "title": summary.experiment.title, "differences": {}, "curves": curves,
        "axes": [f"ratio of the gradients at step {rule.STEP}", gain],
        "other_curves": others, "other_axes": ["weight λ of the penalty", gain],
    }  # fmt: skip


def _over_factor(summary: Summary, outcome: Outcome) -> list[list[Any]]:
    """The mean measure of an arm at each value of the only factor: a number, a word, or settings with a name."""
    (name,) = summary.experiment.factors
    found = breakdown.by_cell(summary)
    values = [cell[name] for cell in summary.experiment.cells()]
    at = [value["name"] if isinstance(value, dict) else value for value in values]
    there = [(value, list(column.by_arm[outcome.arm.name].values())) for value, column in zip(at, found, strict=True)]
    return [[value, round(statistics.fmean(figures), 6)] for value, figures in there if figures]


def _last_part(name: str) -> str:
    return name.split(".")[-1]


def _curve(outcome: Outcome) -> list[list[float]]:
    """The best mean validation figure at each weight of the arm's penalty; empty for an arm without one."""
    name = _weight(outcome.arm)
    best: dict[float, float] = {}
    for choice, mean in outcome.trials if name else []:
        best[choice[name]] = max(mean, best.get(choice[name], mean))
    return [[weight, round(best[weight], 6)] for weight in sorted(best)]


def _started(summary: Summary, outcome: Outcome) -> list[list[float]]:
    """Share of the runs that started, in percent, at each learning rate, whatever the other factors were."""
    by_rate: dict[float, list[float]] = {}
    for record in outcome.records:
        rate = record["config"]["settings"]["recipe"]["lr"]
        by_rate.setdefault(rate, []).append(measured(summary.experiment, record))
    return [[rate, round(statistics.fmean(values), 6)] for rate, values in sorted(by_rate.items())]


def _weight(arm: Arm) -> str | None:
    return next((name for name in arm.tuned if name.startswith("penalty.") and name.endswith("weight")), None)

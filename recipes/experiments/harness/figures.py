"""The figure of an experiment, and in its metadata a digest of the numbers in it, by which it is checked."""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

from harness.experiment import Arm
from harness.summary import Outcome, Summary, measured

_KEY = "Numbers"
_VALIDATION = "validation accuracy, %, at the better rate"
Numbers = dict[str, Any]


def numbers(summary: Summary) -> Numbers:
    """What the figure shows: paired differences; and validation over a penalty's weight, or starts over the rate."""
    differences = {
        name: [round(value, 6) for value in (each.mean, each.low, each.high)]
        for name, each in summary.comparisons.items()
        if each.n > 1
    }
    started = summary.experiment.measure == "started"
    read = functools.partial(_started, summary) if started else _curve
    curves = {name: curve for name, outcome in summary.outcomes.items() if len(curve := read(outcome)) > 1}
    axes = ["learning rate", "seeds that started, %"] if started else ["weight λ of the penalty", _VALIDATION]
    return {"title": summary.experiment.title, "differences": differences, "curves": curves, "axes": axes}


def has_content(summary: Summary) -> bool:
    """Whether there is anything to draw."""
    content = numbers(summary)
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


def draw(summary: Summary, path: Path) -> None:
    """Draw what there is; the file is written anew only where its numbers changed."""
    content = numbers(summary)
    if digest_of(path) == digest(content):
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    figure.suptitle(content["title"])
    names = list(content["differences"])
    for place, name in enumerate(reversed(names)):
        mean, low, high = content["differences"][name]
        left.plot([low, high], [place, place], color="tab:blue")
        left.plot(mean, place, "o", color="tab:blue")
    left.axvline(0, color="grey", linewidth=0.8)
    left.set_yticks(range(len(names)), list(reversed(names)))
    left.set_xlabel(f"{summary.experiment.primary} minus the arm: points, 95 % t interval")
    for name, curve in content["curves"].items():
        right.plot([point[0] for point in curve], [point[1] for point in curve], "o-", label=name)
    if content["curves"]:
        right.set_xscale("log")
        right.legend(fontsize="small")
    right.set_xlabel(content["axes"][0])
    right.set_ylabel(content["axes"][1])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={_KEY: digest(content)})
    plt.close(figure)


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
    return next((name for name in arm.tuned if name in ("penalty.hidden_weight", "penalty.weight")), None)

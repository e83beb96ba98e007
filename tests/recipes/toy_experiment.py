"""A small experiment whose records are written by hand, and the programs of the experiments; no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.plan.choice import final_runs, tuning_runs
from harness.plan.experiment import Arm, Experiment

RECIPES = Path(__file__).parents[2] / "recipes"
RUN, TABLES = RECIPES / "experiments" / "run.py", RECIPES / "experiments" / "tables.py"


def program(script: Path, *arguments: object, rc: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == rc, done.stderr[-4000:]
    return done


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def toy(**changes: Any) -> Experiment:
    """Two rivals and the primary arm, two settings each, two tuning and three fresh seeds."""
    arms = [Arm(name, name, {"arm": name}, {"size": [1, 2]}) for name in ("ours", "first", "second")]
    content: dict[str, Any] = {
        "name": "toy", "title": "Toy", "question": "?", "task": "growing", "settings": {"arm": "", "size": 0},
        "arms": arms, "tuning_seeds": [0, 1], "final_seeds": [10, 11, 12], "primary": "ours",
    }  # fmt: skip
    return Experiment(**{**content, **changes})


def record(run: Any, validation: float, test: float | None = None) -> dict[str, Any]:
    energies = {"after": {"near_duplicates": 3, "mean_score": 1.5}}
    return {
        "key": run.key, "config": run.config(), "seconds": 1.0, "cpu_seconds": 2.0, "peak_memory": {"mb": 100},
        "versions": {"torch": "2.13.0"},
        "result": {"validation": validation, "test": test, "diverged": None, "energies": energies},
    }  # fmt: skip


def tuned(experiment: Experiment, figure: Any) -> list[dict[str, Any]]:
    return [record(run, figure(run.arm, run.choice["size"], run.seed)) for run in tuning_runs(experiment)]


def finished(experiment: Experiment, tuning: list[dict[str, Any]], test: Any) -> list[dict[str, Any]]:
    return tuning + [record(run, 0.0, test(run.arm, run.seed)) for run in final_runs(experiment, tuning)]


BETTER = {"ours": 2, "first": 1, "second": 2}  # the setting that wins the tuning


def figure(arm: str, size: int, seed: int) -> float:
    base = {"ours": 80.0, "first": 70.0, "second": 75.0}[arm]
    return base + (1.0 if size == BETTER[arm] else 0.0) + 0.1 * seed

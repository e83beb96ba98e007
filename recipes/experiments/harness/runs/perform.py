"""Do one run and describe it so that it can be repeated."""

from __future__ import annotations

import importlib
import math
import time
from typing import Any

import torch

from harness.plan.experiment import Run
from harness.runs.surroundings import peak_memory, reset_peak_memory, surroundings


def perform(run: Run) -> dict[str, Any]:
    """The record of a run: its key and config, what it measured, time, memory, and what it stood on."""
    torch.set_num_threads(1)
    task = importlib.import_module(f"harness.tasks.{run.task}")
    reset_peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    result = task.run(run.settings, run.seed, run.stage == "final")
    return {
        "key": run.key,
        "config": run.config(),
        "result": plain(result),
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_memory": peak_memory(),
        **surroundings(),
    }


def plain(value: Any) -> Any:
    """The value as JSON has it: a number that is not finite is None, floats are rounded to six digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value

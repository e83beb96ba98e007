"""Recipes one after the other in the same processes, which import their libraries once.

python -m tests.recipes.in_turn JOBS.json OUTCOMES.jsonl

A job is a list: a name, a script and its arguments. Of each that is done a line is written, with what it printed; the
first that fails ends the process, as it would end alone.
"""

from __future__ import annotations

import gc
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState

Job = list[Any]


@dataclass(frozen=True)
class Outcome:
    """What a job printed, or how it failed."""

    said: str = ""
    fault: str = ""

    def checked(self) -> str:
        assert not self.fault, self.fault
        return self.said


def in_turn(jobs: Sequence[Job], launch: Callable[[Path, Path], object]) -> dict[str, Outcome]:
    """Every job by its name, in as few launches as can be: another one begins after a job that failed.

    `launch` runs the jobs of a file in processes, and raises AssertionError or TimeoutExpired where they fail.
    """
    found: dict[str, Outcome] = {}
    left = list(jobs)
    with tempfile.TemporaryDirectory() as folder:
        file, outcomes = Path(folder) / "jobs.json", Path(folder) / "outcomes.jsonl"
        while left:
            file.write_text(json.dumps(left, default=str))
            outcomes.write_text("")
            fault = ""
            try:
                launch(file, outcomes)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                fault = str(error)
            done = [json.loads(line) for line in outcomes.read_text().splitlines()]
            found |= {name: Outcome(said) for name, said in done}
            if failed := left[len(done) :]:
                found[failed[0][0]] = Outcome(fault=fault or "it was not run")
            elif fault:  # after the last job, in how the processes end
                found[left[-1][0]] = Outcome(fault=fault)
            left = failed[1:]
    return found


def run_in_turn(jobs: Path, outcomes: Path, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
    """Run every job of a file here, each in what `around` makes for it."""
    for name, script, *arguments in json.loads(jobs.read_text()):
        said = io.StringIO()
        sys.argv = [script, *map(str, arguments)]
        sys.path.insert(0, str(Path(script).parent))
        with around(), redirect_stdout(said):
            runpy.run_path(script, run_name="__main__")
        sys.path.pop(0)
        gc.collect()  # models are in cycles, and may hold the process group
        for state in (AcceleratorState, GradientState, PartialState):  # of the process, and a script begins without
            state._reset_state()
        if os.environ.get("RANK", "0") == "0":
            with outcomes.open("a") as file:
                file.write(json.dumps([name, said.getvalue()]) + "\n")


if __name__ == "__main__":
    run_in_turn(Path(sys.argv[1]), Path(sys.argv[2]))

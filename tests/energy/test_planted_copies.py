"""Copies planted in many rows: all found, none invented, in memory that does not grow with the number of pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize(
    ("n", "space", "most"),
    [
        pytest.param(20_000, "full", 150, marks=pytest.mark.slow),
        pytest.param(80_000, "half", 250, marks=[pytest.mark.story, pytest.mark.timeout(1800)]),
    ],
)
def test_copies_among_many_rows(n: int, space: str, most: int) -> None:
    """Else the copies of a large vocabulary would be lost between blocks, or take the memory of all its pairs.

    A bit for each of the pairs of 20,000 rows would be 25 MiB, a number for each 760, and sixteen times that for
    80,000. `python -m tests.energy.planted_worker 200000 64 half` does it for 200,000, in some minutes and 93 MiB.
    """
    command = [sys.executable, "-m", "tests.energy.planted_worker", str(n), "64", space]
    said = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert said["clusters"]
    assert said["pairs"][0] == said["pairs"][1]
    assert said["distinct"][0] == said["distinct"][1]
    assert len(said["listed"]) == 20
    assert {abs(cosine) for *_, cosine in said["listed"]} == {1.0}
    assert said["mebibytes"] < most

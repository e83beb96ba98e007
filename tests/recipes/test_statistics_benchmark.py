"""The benchmark of a layer's statistics runs, and writes what it prints; no time is asserted."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "recipes" / "benchmarks" / "layer_statistics.py"
HEADS = ["shape", "weight", "measured", "ms", "to the value alone", "processor's time"]


@pytest.mark.recipes
def test_every_call_has_a_row(tmp_path: Path) -> None:
    """If this failed, the table in the README could not be measured again."""
    files = {kind: tmp_path / f"rows.{kind}" for kind in ("csv", "json")}
    done = subprocess.run(
        [
            sys.executable, str(BENCHMARK), "--shapes", "64x32", "300x40", "--rounds", "2", "--threads", "1",
            "--csv", str(files["csv"]), "--json", str(files["json"]),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    _, heads, _, *printed = done.stdout.strip().splitlines()
    assert [head.strip() for head in heads.strip("|").split("|")] == HEADS
    rows = json.loads(files["json"].read_text())
    assert len(rows) == len(printed) == 2 * 2 * 4
    assert [row["measured"] for row in rows[:4]] == ["value", "statistics", "both spaces", "twelve"]
    for row in rows:
        assert row["ms"] > 0
        assert (row["to the value alone"] == 1) if row["measured"] == "value" else row["to the value alone"] > 0
    with open(files["csv"], newline="") as file:
        assert [{key: str(value) for key, value in row.items()} for row in rows] == list(csv.DictReader(file))

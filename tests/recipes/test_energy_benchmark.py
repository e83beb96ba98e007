"""The benchmark of the walk sweeps over shapes, with another checkout in turn; no time is asserted."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.recipes
def test_a_sweep_has_a_row_for_each_shape_and_checkout(tmp_path: Path) -> None:
    """If this failed, nobody could see at which sizes a change to the walk made it faster, and at which slower."""
    rows, figure = tmp_path / "rows.csv", tmp_path / "figure.png"
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "recipes" / "benchmarks" / "energy.py"), "--sweep", "--rounds", "2",
            "--threads", "1", "--shapes", "64x32", "96x32", "600x16", "--before", str(ROOT), "--csv", str(rows),
            "--figure", str(figure),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    with open(rows, newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["n"], row["d"], row["version"]) for row in found] == [
        (n, d, version) for n, d in (("64", "32"), ("96", "32"), ("600", "16")) for version in ("before", "now")
    ]
    assert all(float(row["exact_over_floor"]) > 0 and float(row["value_over_floor"]) > 0 for row in found)
    assert len(done.stdout.strip().splitlines()) == 3 + len(found)
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.recipes
def test_a_checkout_that_is_none_is_named(tmp_path: Path) -> None:
    """If this failed, a slip in the path would compare the package with itself."""
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "recipes" / "benchmarks" / "energy.py"), "--sweep", "--shapes", "64x32",
            "--rounds", "1", "--before", str(tmp_path / "nowhere"),
        ],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "hf_mhe" in done.stderr
    assert "Traceback" not in done.stderr

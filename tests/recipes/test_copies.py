"""The trainings of models that begin with copies run, and leave their results and a figure."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
CASES = ["gpt2_mean", "gpt2_equal", "gqa", "mlp"]


@pytest.mark.recipes
def test_every_case_runs(tmp_path: Path) -> None:
    """A figure of the repository could not be made again."""
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, str(RECIPES / "experiments" / "copies.py"), "--quick", "--seeds", "1", "--output", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=290, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "copies.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "copies.json").read_text())
    assert [found["case"] for found in results] == CASES
    for found in results:
        assert found["before"]["nearest"] > 0.999  # copies, before anything is trained
        for arm in ("plain", "mhe"):
            assert len(found[arm]["losses"]) == 3
            assert all(map(math.isfinite, found[arm]["losses"]))
        assert found["loss_ratio"] == pytest.approx(found["mhe"]["held_out"] / found["plain"]["held_out"])
        assert found["plain"]["losses"][0] == pytest.approx(found["mhe"]["losses"][0])  # the same start


def test_what_is_published_is_what_the_readme_says() -> None:
    """A row of results would be of another training than the others."""
    results = json.loads((RECIPES / "results" / "copies.json").read_text())
    assert {found["case"] for found in results} == set(CASES)
    assert all(len(found[arm]["losses"]) == 100 for found in results for arm in ("plain", "mhe"))

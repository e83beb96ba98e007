"""Lambda under DeepSpeed ZeRO 0 to 3, in two processes, is that of one process without it."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from tests.engines.deepspeed_worker import Cell, run
from tests.engines.launch import Results, run_in_processes

# Not importorskip: DeepSpeed in the test's own process would be one more thing that is not as users have it.
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="needs deepspeed (DS_BUILD_OPS=0 pip install deepspeed)"
    ),
]

# Half precision: that of the parameters' own rounding in three steps.
TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}


def matrix() -> list[Cell]:
    cells = [Cell(stage, optimizer) for stage in range(4) for optimizer in ("sgd", "adamw")]
    cells += [Cell(stage, accumulation=steps) for stage in range(4) for steps in (2, 4)]
    cells += [Cell(stage, bind="before") for stage in range(4)]
    cells += [Cell(stage, "adamw", accumulation=2, flags=("clip",)) for stage in range(4)]
    cells += [Cell(stage, flags=(flag,)) for stage in range(1, 4) for flag in ("frozen", "every", "whole")]
    cells += [Cell(3, accumulation=2, flags=("persistent",))]
    return cells


@functools.cache
def several_processes(stage: int) -> Results:
    cells = [cell for cell in matrix() if cell.stage == stage]
    return run_in_processes(cells, 2, worker="tests.engines.deepspeed_worker", timeout=280)


@functools.cache
def one_process(cell: Cell) -> dict[str, Tensor]:
    return run(cell)


@pytest.mark.parametrize("cell", matrix(), ids=lambda cell: cell.name)
def test_every_stage(cell: Cell) -> None:
    """ZeRO averages what it is given, and keeps for later what comes when it does not expect it."""
    several = several_processes(cell.stage or 0)[cell.name]
    kept = tuple(flag for flag in cell.flags if flag in ("clip", "frozen", "every"))
    alone = replace(cell, stage=None, accumulation=1, bind="after", flags=kept)
    one, plain = one_process(alone), one_process(replace(alone, flags=(*kept, "plain")))
    tolerance = TOLERANCE[cell.dtype]
    for name in one.keys() - {"penalty", "record"}:
        assert (several[name] - one[name]).abs().max().item() < tolerance, (cell.name, name)
    # Or the penalty did nothing in either, also to the layer that the forward pass does not reach.
    assert (one["unreached.weight"] - plain["unreached.weight"]).abs().max().item() > 1e-4
    for told in ("penalty", "record"):
        for rank in several[told]:
            torch.testing.assert_close(rank, one[told][0], rtol=1e-5, atol=1e-7)

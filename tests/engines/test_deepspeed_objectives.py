"""A member of the family under DeepSpeed ZeRO 0 to 3, in two processes, is that of one process without it."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from hf_mhe.training.objectives.family_members import MEMBERS
from tests.engines.deepspeed_worker import Cell, run
from tests.engines.launch import run_in_processes

pytestmark = [
    pytest.mark.engines,
    pytest.mark.thorough,
    pytest.mark.timeout(660),  # the first test waits for all cells
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="needs deepspeed (DS_BUILD_OPS=0 pip install deepspeed)"
    ),
]


def cells() -> list[Cell]:
    """One step by each member, which the zoo's long embeddings would throw far; three by those that draw at each."""
    made = [Cell(stage, flags=("once", f"objective={name}")) for stage in (2, 3) for name in MEMBERS]
    for name in ("srip", "comhe_random"):
        objective = f"objective={name}"
        made += [Cell(stage, accumulation=2, flags=(objective,)) for stage in range(4)]
        made += [Cell(stage, "adamw", accumulation=2, bind="before", flags=("clip", objective)) for stage in range(4)]
        for stage in (1, 2, 3):
            made += [Cell(stage, flags=(flag, objective)) for flag in ("frozen", "every", "whole")]
            made += [Cell(stage, accumulation=2, flags=(flag, objective)) for flag in ("overlap", "direct")]
            made += [Cell(stage, accumulation=2, flags=("once", "lora", objective))]
            made += [Cell(stage, "adamw", accumulation=2, flags=("offload", objective))]
        made += [Cell(3, accumulation=2, flags=("offload", "params", "every", objective))]
        made += [Cell(3, accumulation=2, bind="before", flags=("init", objective))]
        made += [Cell(stage, dtype="bfloat16", accumulation=2, flags=(objective,)) for stage in (0, 2, 3)]
    return made


IN_ONE_PROCESS_TOO = {"clip", "lora", "frozen", "every", "once"}


@functools.cache
def alone(cell: Cell) -> dict[str, Tensor]:
    flags = tuple(flag for flag in cell.flags if flag in IN_ONE_PROCESS_TOO or "=" in flag)
    return run(replace(cell, stage=None, accumulation=1, bind="after", flags=flags))


def several_processes(cell: Cell) -> dict[str, Tensor]:
    return run_in_processes(cells(), 2, worker="tests.engines.deepspeed_worker", timeout=600)[cell.name]


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: cell.name)
def test_every_stage(cell: Cell) -> None:
    """The gradient that one rank computes would be averaged with the nothing of the others, or counted on each."""
    several, one = several_processes(cell), alone(cell)
    energy = alone(replace(cell, flags=tuple(flag for flag in cell.flags if "=" not in flag)))
    tolerance = 2e-2 if cell.dtype == "bfloat16" else 2e-6
    for name in one.keys() - {"penalty", "record"}:
        scale = max(1.0, one[name].abs().max().item())
        assert (several[name] - one[name]).abs().max().item() < tolerance * scale, (cell.name, name)
    # Or the objective did nothing in either, also to the layer that the forward pass does not reach.
    assert (one["unreached.weight"] - energy["unreached.weight"]).abs().max().item() > 1e-4
    for rank in several["penalty"]:
        torch.testing.assert_close(rank, one["penalty"][0], rtol=max(1e-5, tolerance), atol=1e-6)

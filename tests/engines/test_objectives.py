"""A member of the family on several processes does to the parameters what it does on one with the whole batch."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_mhe.training.objectives.family_members import MEMBERS
from tests.engines.launch import Results, run_in_processes
from tests.engines.worker import Cell, run
from tests.engines.wrapping import SHARDED

# What has the gradient of a pair alone, of all pairs, and of what is drawn.
QUICK = [
    Cell("fsdp2", bind="before", objective="comhe_random"),
    Cell("ddp", accumulation=2, objective="srip"),
    Cell("tp", objective="minimal_angle"),
]
ENGINES = ("ddp", "ddp-unused", "ddp-whole", "fsdp2", "fsdp2-columns", "tp", "hsdp", "tp-fsdp2")


def matrix() -> list[Cell]:
    # One step of those that the zoo's long embeddings would throw far.
    cells = [
        Cell(engine, once="orthogonality" in name, objective=name) for engine in ("ddp", "fsdp2") for name in MEMBERS
    ]
    cells += [Cell(engine, accumulation=2, objective=name) for engine in ENGINES for name in ("srip", "comhe_random")]
    cells += [
        Cell("fsdp2", copies=True, objective=name) for name in ("minimal_angle", "comhe_random", "comhe_adversarial")
    ]
    return [*cells, Cell("fsdp2", accumulation=2, checkpointing=True, objective="comhe_random")]


def processes(cell: Cell) -> int:
    return SHARDED.get(cell.engine, 2)


@functools.cache
def launched(count: int) -> Results:
    return run_in_processes([cell for cell in matrix() if processes(cell) == count], count)


@functools.cache
def alone(cell: Cell) -> dict[str, Tensor]:
    return run(cell)


def check(cell: Cell, several: dict[str, Tensor]) -> None:
    one = alone(replace(cell, engine="one", accumulation=1, bind="after", checkpointing=False))
    energy = alone(replace(cell, engine="one", accumulation=1, bind="after", checkpointing=False, objective="energy"))
    assert several.keys() == one.keys()
    for name in one.keys() - {"penalty"}:
        scale = max(1.0, one[name].abs().max().item())
        assert (several[name] - one[name]).abs().max().item() < 1e-9 * scale, (cell.name, name)
    # Or the objective did nothing in either, also to the layer that the forward pass does not reach.
    assert (one["unreached.weight"] - energy["unreached.weight"]).abs().max().item() > 1e-4
    torch.testing.assert_close(several["penalty"].mean(0), one["penalty"][0], rtol=1e-9, atol=0)


@pytest.mark.slow
def test_quick_cells() -> None:
    """Another objective than the energy would be another one on several processes."""
    results = run_in_processes(QUICK, 2)
    for cell in QUICK:
        check(cell, results[cell.name])


@pytest.mark.engines
@pytest.mark.parametrize("cell", matrix(), ids=lambda cell: cell.name)
def test_every_cell(cell: Cell) -> None:
    """Another objective than the energy would be another one on several processes."""
    check(cell, launched(processes(cell))[cell.name])

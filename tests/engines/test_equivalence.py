"""What the penalty does to the parameters is the same on every engine as in one process with the whole batch."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engines.launch import Results, run_in_processes
from tests.engines.worker import Cell, run
from tests.engines.wrapping import SHARDED

TOLERANCE = {"float32": 1e-6, "float64": 1e-9}
QUICK = [
    Cell("fsdp2", "adamw", "float32", 2, "before"),
    Cell("tp", "sgd", "float64", 1, "after"),
    Cell("ddp-unused", "sgd", "float64", 2, "after", clip=True),
    Cell("fsdp2", "sgd", "float64", 1, "before", copies=True),
]
# What the penalty adds to one step, where the task's own gradient is rounded, or not summed over the ranks.
ADDED = [Cell(engine, dtype="float32", once=True) for engine in ("fsdp2-bfloat16", "fsdp2-ignored")]


def matrix() -> list[Cell]:
    whole = itertools.product(("sgd", "adamw"), ("float32", "float64"), (1, 2), ("before", "after"), (False, True))
    cells = [Cell(engine, *rest) for rest in whole for engine in ("fsdp2", "ddp", "ddp-unused")]
    others = [engine for engine in SHARDED if engine != "fsdp2" and engine not in {cell.engine for cell in ADDED}]
    for optimizer, bind in itertools.product(("sgd", "adamw"), ("before", "after")):
        cells += [
            Cell(engine, optimizer, "float64", 2, bind)
            for engine in (*others, "ddp-hook", "ddp-whole", "ddp-offloaded")
        ]
        cells.append(Cell("ddp-static", optimizer, "float64", 1, bind))
    for engine in others:
        cells.append(Cell(engine, "adamw", "float32", 2, "before", clip=True, checkpointing=True))
    cells.append(Cell("fsdp2", "sgd", "float64", 2, checkpointing=True))
    cells += [Cell(engine, clip=True, copies=True) for engine in (*others, "fsdp2", "ddp", "ddp-unused")]
    return cells


@functools.cache
def launched(processes: int, sharded: bool) -> Results:
    cells = [*matrix(), *ADDED, *(replace(cell, penalty=False) for cell in ADDED)]
    together = [c for c in cells if (c.engine in SHARDED) == sharded and SHARDED.get(c.engine, 2) == processes]
    return run_in_processes(together, processes)


def several_processes(cell: Cell) -> dict[str, Tensor]:
    return launched(SHARDED.get(cell.engine, 2), cell.engine in SHARDED)[cell.name]


@functools.cache
def one_process(cell: Cell) -> dict[str, Tensor]:
    return run(cell)


def check(cell: Cell, several: dict[str, Tensor]) -> None:
    alone = replace(cell, engine="one", accumulation=1, bind="after", checkpointing=False)
    one, plain = one_process(alone), one_process(replace(alone, penalty=False))
    assert several.keys() == one.keys()
    for name in one.keys() - {"penalty"}:
        assert (several[name] - one[name]).abs().max().item() < TOLERANCE[cell.dtype], (cell.name, name)
    # Or the penalty did nothing in either, also to the layer that the forward pass does not reach.
    assert (one["unreached.weight"] - plain["unreached.weight"]).abs().max().item() > 1e-3
    mean = several["penalty"].mean(0)
    torch.testing.assert_close(mean, one["penalty"][0], rtol=TOLERANCE[cell.dtype], atol=0)
    divided = cell.engine in ("ddp", "ddp-unused", "ddp-static", "ddp-offloaded")
    apart = (several["penalty"] - mean).abs().max().item()
    assert apart > 0.1 if divided else apart < TOLERANCE[cell.dtype], cell.name


@pytest.mark.slow
def test_quick_cells() -> None:
    """Lambda would depend on the engine, the number of processes or the split of the batch."""
    results = run_in_processes(QUICK, 2)
    for cell in QUICK:
        check(cell, results[cell.name])


@pytest.mark.engines
@pytest.mark.parametrize("cell", matrix(), ids=lambda cell: cell.name)
def test_every_cell(cell: Cell) -> None:
    """Lambda would depend on the engine, the number of processes or the split of the batch."""
    check(cell, several_processes(cell))


@pytest.mark.engines
@pytest.mark.parametrize("cell", ADDED, ids=lambda cell: cell.name)
def test_what_the_penalty_adds(cell: Cell) -> None:
    """The penalty would be rounded with the task, or averaged where only the task is."""
    one = replace(cell, engine="one")
    for name in one_process(one).keys() - {"penalty"}:
        added = several_processes(cell)[name] - several_processes(replace(cell, penalty=False))[name]
        expected = one_process(one)[name] - one_process(replace(one, penalty=False))[name]
        assert (added - expected).abs().max().item() < TOLERANCE["float32"], name

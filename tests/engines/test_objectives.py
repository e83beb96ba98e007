"""A member of the family on several processes does to the parameters what it does on one with the whole batch."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_mhe.training.budget.allotment import allot
from hf_mhe.training.engines.plan import GroupShape, Workload
from hf_mhe.training.objectives.family_members import MEMBERS
from tests.engines import budget_worker
from tests.engines.launch import Results, run_in_processes
from tests.engines.worker import Cell, run
from tests.engines.wrapping import SHARDED

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
    cells += [Cell("fsdp2", bind="before", objective="comhe_random"), Cell("tp", objective="minimal_angle")]
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


@pytest.mark.engines
@pytest.mark.parametrize("cell", [c for c in matrix() if processes(c) == 2], ids=lambda cell: cell.name)
def test_every_cell(cell: Cell) -> None:
    """Another objective than the energy would be another one on several processes."""
    check(cell, launched(2)[cell.name])


@pytest.mark.engines
@pytest.mark.thorough
@pytest.mark.parametrize("cell", [c for c in matrix() if processes(c) == 4], ids=lambda cell: cell.name)
def test_every_cell_of_four_processes(cell: Cell) -> None:
    """Another objective than the energy would be another one where two ways to divide a model meet."""
    check(cell, launched(4)[cell.name])


@dataclass(frozen=True)
class UnderBudget:
    """Three steps of `budget_worker`."""

    engine: str

    @property
    def name(self) -> str:
        return f"{self.engine}:soft_orthogonality"


@pytest.mark.engines
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "deepspeed"])
def test_two_processes_draw_alike_within_a_budget(engine: str) -> None:
    """Ranks would draw different groups, sample what has no samples, or compute more than the budget allows."""
    if engine == "deepspeed" and find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed (DS_BUILD_OPS=0 pip install deepspeed)")
    cell = UnderBudget(engine)
    found: Any = run_in_processes([cell], 2, worker="tests.engines.budget_worker")[cell.name]
    shapes = [GroupShape(n, d, whole=6 * n * d * min(n, d)) for n, d in budget_worker.SHAPES]
    if engine == "fsdp2":
        shapes = [shape._replace(size=8 * shape.n * shape.d) for shape in shapes]
    allowance = float(found[-1][0])  # the budget is 1
    allotment = allot(Workload(tuple(shapes), 2), (0.7,) * len(shapes), allowance)
    assert not any(allotment.rows)
    # An operation of a penalty counts as 1.5 of a step's.
    busiest = sum(allotment.busiest(allotment.draw(step, seed=7)) for step in range(400)) / 400
    assert busiest <= 1.05 * allowance / 1.5
    layers = [layer.weight for layer in budget_worker.make().layers]
    counts, rtol = [], 1e-4 if engine == "deepspeed" else 1e-9
    for step in range(budget_worker.STEPS):
        drawn = allotment.draw(step, seed=7)
        counts.append(len(drawn))
        for index, (actual, rows) in enumerate(zip(found[step], layers, strict=True)):
            excess = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)
            wanted = (0.7 * drawn.get(index, 0.0) * 4 * excess @ rows).detach()
            torch.testing.assert_close(actual.double(), wanted, rtol=rtol, atol=1e-2 * rtol)
            if engine == "deepspeed":
                rows.data -= budget_worker.RATE * wanted
    assert 0 < sum(counts) < budget_worker.STEPS * len(layers)

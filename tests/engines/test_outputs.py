"""The energy of outputs on several real processes against one process, and against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engines import outputs_worker
from tests.engines.launch import run_in_processes
from tests.engines.outputs_worker import BAD, CASES, Cell
from tests.oracle import directions

WORKER = "tests.engines.outputs_worker"
CELLS = [
    *(Cell(engine, dtype, case) for engine in ("ddp", "fsdp2") for dtype in ("float32", "float64") for case in CASES),
    *(Cell("sum", "float64", case) for case in ("plain", "labels and mask")),
    Cell("ddp", "bfloat16", "plain"),
]
CLOSE = {"float32": 1e-6, "float64": 1e-10, "bfloat16": 5e-2}


def by_formula(cell: Cell) -> dict[str, Tensor]:
    """The same loss of the whole batch, with the energy from a loop over its pairs, differentiated by autograd."""
    model = outputs_worker.make(torch.float64)
    whole = outputs_worker.batch(cell.case, torch.float64)
    outputs = model(whole["inputs"])
    labels = whole.get("labels", torch.arange(outputs.shape[:-1].numel())).reshape(-1)
    takes_part = whole.get("mask", torch.ones(outputs.shape[:-1])).reshape(-1).bool() & (labels != -100)
    unit, labels = directions(outputs.reshape(-1, outputs.shape[-1]))[takes_part], labels[takes_part]
    energies = [
        bounded(unit[i] @ unit[j]) for i in range(len(unit)) for j in range(len(unit)) if labels[i] != labels[j]
    ]
    energy = torch.stack(energies).mean()
    (0.3 * outputs.square().sum() / len(whole["inputs"]) + 0.7 * energy).backward()
    return {**{name: outputs_worker.gradient(value) for name, value in model.named_parameters()}, "energy": energy}


def bounded(cos: Tensor) -> Tensor:
    """`1 / (2 - 2 c)`, above a cosine of 0.95 its tangent there, of value 10 and slope 200."""
    return 1 / (2 - 2 * cos) if cos <= 0.95 else 10 + 200 * (cos - 0.95)


def check(cell: Cell, processes: int, cells: list[Cell]) -> None:
    several: dict[str, Any] = run_in_processes(cells, processes, worker=WORKER)[cell.name]
    close = CLOSE[cell.dtype]
    for expected in (outputs_worker.run(cell), by_formula(cell)):
        assert several.keys() == {*expected, "energies"}
        for name, value in expected.items():
            scale = max(1.0, value.abs().max().item())
            assert (several[name].double() - value.double()).abs().max().item() <= close * scale, (name, expected)
    assert several["energies"].shape == (processes,)
    assert (several["energies"] == several["energy"]).all()


@pytest.mark.engines
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_several_processes_do_what_one_does(cell: Cell, processes: int) -> None:
    """An engine, a dtype, a rank without rows or pairs that lie between ranks would change the gradient."""
    check(cell, processes, CELLS)


@pytest.mark.engines
@pytest.mark.parametrize("case", BAD)
def test_what_one_rank_refuses_all_refuse(case: str) -> None:
    """A rank would stop alone, and the others would wait for it until somebody looks after the job."""
    results: dict[str, Any] = run_in_processes([Bad(each) for each in BAD], 2, worker=WORKER)
    reason = {
        "nan": "row 6 has nan",
        "shape": r"got torch.float32 of shape (5,)",
        "dimension": "d=4",
        "labels on one": "without labels",
    }
    for said in results[case]:
        assert reason[case] in said, results[case]


class Bad(str):
    """A case of bad input, known to the worker by its name."""

    @property
    def name(self) -> str:
        return str(self)

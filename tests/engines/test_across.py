"""Whole modules pushed apart by several processes against one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from tests.engines.across_worker import Cell, run
from tests.engines.launch import run_in_processes

TWO = [
    *(Cell("ddp"), Cell("fsdp2"), Cell("fsdp2", "listed"), Cell("placed", how="1")),
    *(Cell(engine, model) for engine in ("ddp-unused", "fsdp2-kept", "hsdp-1x2") for model in ("mixtral", "listed")),
    *(Cell(engine, roles=True) for engine in ("ddp", "fsdp2")),
    *(Cell("placed", how=how) for how in ("0", "2", "r")),
]
ZERO = [Cell("zero", how=how) for how in ("0", "1", "2", "2o", "3")] + [Cell("zero", roles=True, how="2")]
FOUR = [Cell("hsdp"), Cell("fsdp2"), *(Cell("placed", how=how) for how in ("r0", "0r", "01", "12", "00"))]


def same(cell: Cell, found: dict[str, Tensor]) -> None:
    alone = {"placed": Cell("placed", cell.model), "zero": Cell("one", cell.model, cell.roles, "float32")}
    expected = run(alone.get(cell.engine, Cell("one", cell.model, cell.roles)))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert (value - found[name]).abs().max().item() < (1e-5 if cell.engine == "zero" else 1e-9), name


@pytest.mark.engines
@pytest.mark.parametrize(
    ("cell", "processes"),
    [*((c, 2) for c in TWO), *(pytest.param(c, 4, marks=pytest.mark.thorough) for c in FOUR)],
    ids=str,
)
def test_every_engine_does_what_one_process_does(cell: Cell, processes: int) -> None:
    """An engine would sum the wrong coordinates, or send a gradient to the wrong expert."""
    cells = TWO if processes == 2 else FOUR
    same(cell, run_in_processes(cells, processes, worker="tests.engines.across_worker")[cell.name])


@pytest.mark.engines
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed (DS_BUILD_OPS=0 pip install deepspeed)")
@pytest.mark.parametrize("cell", ZERO, ids=str)
def test_deepspeed_does_what_one_process_does(cell: Cell) -> None:
    """Under ZeRO the experts would be pushed as often as there are ranks, or by what a part of them says."""
    found = run_in_processes(ZERO, 2, worker="tests.engines.across_worker")[cell.name]
    if cell.how != "3":
        same(cell, found)
        return
    said = bytes(found["refused"].tolist()).decode()
    assert said.startswith("MHE does not support across='experts' with DeepSpeed ZeRO 3, which has partitioned the")
    assert "'model.layers.0.mlp.experts.*'" in said


def test_the_trainings_do_something() -> None:
    """Several processes would equal one because nothing moves."""
    parted = run(Cell("one"))["model.layers.0.mlp.experts.gate_up_proj"]
    assert (parted[0] - parted[1]).abs().max().item() > 1e-3
    assert torch.isfinite(parted).all()

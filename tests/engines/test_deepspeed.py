"""Lambda under DeepSpeed ZeRO 0 to 3, in two processes, is that of one process without it."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engines.deepspeed_worker import HALF, Cell, initial, run
from tests.engines.launch import run_in_processes

# Not importorskip: DeepSpeed in the test's own process would be one more thing that is not as users have it.
pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(660),  # the first test waits for all cells
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="needs deepspeed (DS_BUILD_OPS=0 pip install deepspeed)"
    ),
]

# Half precision: that of the parameters' own rounding in three steps.
TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}
# What DeepSpeed asks of a CPU before it takes float16: the AVX512-FP16 that not every processor has.
FLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
IN_ONE_PROCESS_TOO = {"clip", "lora", "frozen", "every", "once", "plain"}


def matrix() -> list[Cell]:
    cells = [Cell(stage, optimizer) for stage in range(4) for optimizer in ("sgd", "adamw")]
    cells += [Cell(stage, accumulation=steps) for stage in range(4) for steps in (2, 4)]
    cells += [Cell(stage, bind="before") for stage in range(4)]
    cells += [Cell(stage, "adamw", accumulation=2, flags=("clip",)) for stage in range(4)]
    for stage in (1, 2, 3):
        cells += [Cell(stage, flags=(flag,)) for flag in ("frozen", "every", "whole")]
        cells += [Cell(stage, accumulation=2, flags=(flag,)) for flag in ("overlap", "scattered")]
        cells += [Cell(stage, "adamw", accumulation=2, flags=("offload", *more)) for more in ((), ("clip",))]
        cells += [Cell(stage, accumulation=2, bind="before", flags=("offload", "every"))]
    for flags in (("persistent",), ("persistent", "clip"), ("offload", "params"), ("offload", "params", "every")):
        cells.append(Cell(3, accumulation=2, flags=flags))
    cells += [Cell(3, accumulation=2, bind=bind, flags=("init",)) for bind in ("before", "after")]
    cells += [Cell(stage, accumulation=2, flags=("unmanaged",)) for stage in range(4)]
    cells += [Cell(stage, accumulation=2, flags=("direct",)) for stage in (1, 2, 3)]
    cells += [Cell(stage, accumulation=2, flags=("nosync",)) for stage in (0, 1)]
    cells += [Cell(stage, accumulation=2, flags=("lora",)) for stage in range(4)]
    cells += [Cell(stage, dtype="bfloat16", accumulation=2) for stage in range(4)]
    cells += [Cell(1, dtype="bfloat16", accumulation=2, flags=("sums",))]
    cells += [Cell(stage, dtype="float16", flags=("overflow",)) for stage in (1, 2, 3)]
    return cells


def added() -> list[Cell]:
    """A single step in half precision: what the penalty adds to it."""
    cells = [Cell(stage, dtype="bfloat16", flags=("once",)) for stage in range(4)]
    cells += [Cell(stage, dtype="float16", flags=("once",)) for stage in (1, 2, 3)]
    return [*cells, Cell(1, dtype="bfloat16", flags=("once", "sums"))]


def without_penalty(cell: Cell) -> Cell:
    return replace(cell, flags=(*cell.flags, "plain"))


def supported(cell: Cell) -> bool:
    return FLOAT16 or cell.dtype != "float16"


def each(cells: list[Cell]) -> list[Any]:
    unsupported = pytest.mark.skip(reason="DeepSpeed has no float16 on a processor without AVX512-FP16")
    return [pytest.param(cell, id=cell.name, marks=[] if supported(cell) else [unsupported]) for cell in cells]


def several_processes(cell: Cell) -> dict[str, Tensor]:
    cells = list(filter(supported, [*matrix(), *added(), *map(without_penalty, added())]))
    return run_in_processes(cells, 2, worker="tests.engines.deepspeed_worker", timeout=600)[cell.name]


def one_process(cell: Cell) -> dict[str, Tensor]:
    """The same without DeepSpeed, in float32 and with the whole batch at once."""
    flags = tuple(flag for flag in cell.flags if flag in IN_ONE_PROCESS_TOO)
    return alone(replace(cell, stage=None, accumulation=1, bind="after", flags=flags))


alone = functools.cache(run)


@pytest.mark.parametrize("cell", each(matrix()))
def test_every_stage(cell: Cell) -> None:
    """ZeRO averages what it is given, and keeps for later what comes when it does not expect it."""
    several = several_processes(cell)
    one, plain = one_process(cell), one_process(without_penalty(cell))
    tolerance = TOLERANCE[cell.dtype]
    for name in one.keys() - {"penalty", "record"}:
        assert (several[name] - one[name]).abs().max().item() < tolerance, (cell.name, name)
    # Or the penalty did nothing in either, also to the layer that the forward pass does not reach.
    assert (one["unreached.weight"] - plain["unreached.weight"]).abs().max().item() > 1e-4
    exact = cell.dtype == "float32"
    for told in ("penalty", "record") if "overflow" not in cell.flags else ("penalty",):
        for rank in several[told]:
            torch.testing.assert_close(
                rank, one[told][0], rtol=1e-5 if exact else tolerance, atol=1e-7 if exact else tolerance
            )


@pytest.mark.parametrize("cell", each(added()))
def test_what_the_penalty_adds_in_half_precision(cell: Cell) -> None:
    """A wrong lambda could hide within the rounding of what the task does."""
    several, several_plain = several_processes(cell), several_processes(without_penalty(cell))
    one, plain = one_process(cell), one_process(without_penalty(cell))
    start = {name: value.detach() for name, value in initial(cell).named_parameters()}
    rounding = torch.finfo(HALF[cell.dtype]).eps
    for name in start:
        in_processes = several[name] - several_plain[name]
        # The sum of both gradients is rounded, scaled, summed over the ranks and rounded again.
        allowed = 4 * rounding * (one[name] - start[name]).abs().max().item()
        assert (in_processes - (one[name] - plain[name])).abs().max().item() <= allowed, (cell.name, name)

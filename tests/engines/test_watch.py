"""EnergyCallback in two real processes, on every engine, against one process with the whole batch."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.engines import watch_worker
from tests.engines.launch import run_in_processes


class Cell(NamedTuple):
    """An engine, as the worker knows it."""

    name: str


@functools.cache
def one_process() -> dict[str, Tensor]:
    return watch_worker.run("")


@pytest.mark.engines
@pytest.mark.parametrize("engine", watch_worker.ENGINES)
def test_two_processes_measure_what_one_does(engine: str) -> None:
    """A curve would be that of a shard, or ranks with clocks of their own would wait for each other for ever."""
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    found = run_in_processes([Cell(engine)], 2, worker="tests.engines.watch_worker")[engine]
    expected = one_process()
    assert found.keys() == expected.keys()
    for key, curve in expected.items():
        torch.testing.assert_close(found[key], curve, rtol=1e-4, atol=0, msg=lambda text, key=key: f"{key}: {text}")
    steps = {limit: found[f"tiny {limit} mhe_spread"][:, 0].tolist() for limit in ("none", "of rank 0")}
    assert steps == {"none": [1, 2, 4, 5], "of rank 0": [1, 5]}

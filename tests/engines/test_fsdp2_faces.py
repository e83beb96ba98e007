"""FSDP2 through accelerate and through Trainer, in two real processes against one."""

from __future__ import annotations

import functools

import pytest

from tests.engines import fsdp2_worker
from tests.engines.launch import Results, run_in_processes
from tests.training import worker


@functools.cache
def two_processes() -> Results:
    return run_in_processes([], 2, worker="tests.engines.fsdp2_worker")


@pytest.mark.engines
@pytest.mark.parametrize("kind", fsdp2_worker.KINDS)
def test_two_processes_do_what_one_does(kind: str) -> None:
    """Lambda would depend on who calls `fully_shard`, or on whether the model was bound before it was sharded."""
    moved = 0.0
    one = {penalty: worker.run(f"{kind} {penalty}") for penalty in (False, True)}
    two = {penalty: two_processes()[f"{kind} {penalty}"] for penalty in (False, True)}
    assert two[True].keys() == one[True].keys()
    for name in one[True]:
        of_one = one[True][name] - one[False][name]
        of_two = two[True][name] - two[False][name]
        assert (of_one - of_two).abs().max().item() < 1e-6, name
        assert (one[True][name] - two[True][name]).abs().max().item() < 1e-6, name
        moved = max(moved, of_one.abs().max().item() if name != "logged" else 0.0)
    assert moved > 1e-3  # or the penalty did nothing, in one process and in two

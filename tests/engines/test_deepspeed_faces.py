"""DeepSpeed through accelerate and through Trainer, in two real processes against one without it."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import pytest

from tests.engines import deepspeed_faces_worker
from tests.engines.launch import Results, run_in_processes

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="needs deepspeed (DS_BUILD_OPS=0 pip install deepspeed)"
    ),
]


@functools.cache
def two_processes() -> Results:
    return run_in_processes([], 2, worker="tests.engines.deepspeed_faces_worker")


@pytest.mark.parametrize("kind", deepspeed_faces_worker.KINDS)
def test_two_processes_do_what_one_does(kind: str) -> None:
    """Lambda would depend on who drives DeepSpeed, or on which of the two divides by the accumulation."""
    one = {penalty: deepspeed_faces_worker.run(kind, penalty, None) for penalty in (False, True)}
    two = {penalty: two_processes()[f"{kind} {penalty}"] for penalty in (False, True)}
    assert two[True].keys() == one[True].keys()
    moved = 0.0
    for name in one[True]:
        of_one = one[True][name] - one[False][name]
        of_two = two[True][name] - two[False][name]
        assert (of_one - of_two).abs().max().item() < 1e-6, name
        moved = max(moved, of_one.abs().max().item() if name != "logged" else 0.0)
    assert moved > 1e-3  # or the penalty did nothing, in one process and in two

"""Two real processes under torchrun against one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training import worker

Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Results:
    path = tmp_path_factory.mktemp("ddp") / "results.pt"
    root = Path(worker.__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.worker", str(path)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(path)


def kinds() -> list[str]:
    return sorted({name.rsplit(" ", 1)[0] for name in worker.RUNS})


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_two_processes_do_what_one_does(kind: str, two_processes: Results) -> None:
    """Lambda would depend on the number of processes."""
    one = {penalty: worker.run(f"{kind} {penalty}") for penalty in (False, True)}
    two = {penalty: two_processes[f"{kind} {penalty}"] for penalty in (False, True)}
    moved = 0.0
    for name in one[True]:
        of_one = one[True][name] - one[False][name]
        of_two = two[True][name] - two[False][name]
        assert (of_one - of_two).abs().max().item() < 1e-6, name
        assert (one[True][name] - two[True][name]).abs().max().item() < 1e-6, name
        moved = max(moved, of_one.abs().max().item() if name != "logged" else 0.0)
    assert moved > 1e-3  # or the penalty did nothing, in one process and in two


@pytest.mark.slow
def test_a_layer_that_the_forward_pass_skips_is_regularized(two_processes: Results) -> None:
    """DDP would be told that nothing arrives for such a layer, and stop when the penalty's gradient does."""
    before = dict(worker.make("unused").double().named_parameters())["unused.weight"]
    assert (two_processes["trainer unused 1 True"]["unused.weight"] - before).abs().max().item() > 1e-3
    assert torch.equal(two_processes["trainer unused 1 False"]["unused.weight"], before)

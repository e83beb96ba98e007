"""Starts a worker under torchrun, brings back what its cells did, and ends its processes."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

Results = dict[str, dict[str, Tensor]]


class Named(Protocol):
    """One training that a worker does, known to it by a name."""

    @property
    def name(self) -> str: ...


def run_in_processes(
    cells: Sequence[Named], processes: int, *, worker: str = "tests.engines.worker", timeout: float = 240
) -> Results:
    """The results of all cells, trained one after the other in one launch of `processes` processes on CPU.

    What was launched once is not launched again, whether it went well or not.
    """
    results = _launched(tuple(cell.name for cell in cells), processes, worker, timeout)
    assert not isinstance(results, str), results
    return results


@functools.cache
def _launched(cells: tuple[str, ...], processes: int, worker: str, timeout: float) -> Results | str:
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "results.pt", Path(folder) / "stderr"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        with errors.open("w") as stream:
            launched = subprocess.Popen(
                [*torchrun, "-m", worker, str(output), *cells],
                cwd=Path(__file__).parents[2],
                env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
            try:
                status: int | str = launched.wait(timeout)
            except subprocess.TimeoutExpired:
                launched.terminate()  # not killed, which would leave its processes behind
                launched.wait()
                status = f"not done in {timeout} s"
        if status:
            return f"{worker}: {status}\n{errors.read_text()[-4000:]}"
        results: Results = torch.load(output)
        return results


def leave_processes() -> None:
    """Wait for the other ranks and end the process group: the last thing that a worker does.

    Models first, and sharded ones are in cycles: one that held the group last would end gloo's threads while they
    wait for Python's lock, which is a deadlock now and then.
    """
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

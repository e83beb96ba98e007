"""Starts the worker under torchrun and brings back what its cells did."""

from __future__ import annotations

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
    """The results of all cells, trained one after the other in one launch of `processes` processes on CPU."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.pt"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*torchrun, "-m", worker, str(output), *(cell.name for cell in cells)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        results: Results = torch.load(output)
        return results

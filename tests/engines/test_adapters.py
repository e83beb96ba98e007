"""With adapters of peft, what the penalty does in two processes is what it does in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from tests.engines.adapters_worker import CELLS, train

pytestmark = pytest.mark.engines


def test_adapters_train_as_in_one_process(tmp_path: Path) -> None:
    """A rank would take its shard of A or B for the whole matrix, or the base would move with the adapter."""
    output = tmp_path / "results.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.engines.adapters_worker", str(output)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = torch.load(output)
    for method in ("lora", "dora"):
        one, plain = train("one", method), train("one", method, weight=0.0)
        assert max(float((one[name] - plain[name]).abs().max()) for name in one) > 1e-2
        assert all(torch.equal(one[name], plain[name]) for name in one if "lora_" not in name)
        for cell in (cell for cell in CELLS if cell.endswith(method)):
            assert results[cell].keys() == one.keys()
            for name, value in one.items():
                assert float((results[cell][name] - value).abs().max()) < 1e-9, (cell, name)

"""Two real processes with uneven numbers of tokens: what the penalty adds is still lambda times its gradient."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import across_devices
from tests.training.cases import relative_difference
from tests.training.trainers import by_formula

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], dict[str, torch.Tensor]]:
    path = tmp_path_factory.mktemp("devices") / "results.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.across_devices", str(path)],
        cwd=Path(across_devices.__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(path)


@pytest.mark.parametrize("resting", [1, 2])
@pytest.mark.parametrize("options", across_devices.OPTIONS)
@pytest.mark.parametrize("name", ["gpt2", "bert", "tiny"])
def test_the_formulas_gradient(name: str, options: str, resting: int, two_processes: dict) -> None:
    """Lambda would be multiplied by the number of processes, or by a share of the tokens."""
    found = two_processes[name, options, resting]
    times = {1: 0.0, 2: 2.0}[resting] if options == "every second" else 1.0
    if times == 0:
        # the step that is left out: the two trainings differ by nothing
        assert not any(value.any() for value in found.values())
    else:
        assert relative_difference(found, by_formula(name, times)) < 1e-9

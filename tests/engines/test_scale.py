"""The plan on paper: that the file says what the script says, and that the script counts what real processes do."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hf_mhe.training.engines import plan
from tests.engines.scale_worker import MODELS

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "recipes" / "benchmarks"


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", BENCHMARKS / "scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.recipes
def test_the_file_is_the_scripts(scale: ModuleType) -> None:
    """The figures would be those of an earlier plan or budget: python recipes/benchmarks/scale.py writes them anew."""
    assert (BENCHMARKS / "SCALE.md").read_text(encoding="utf-8") == scale.tables()


@pytest.mark.engines
def test_two_processes_do_what_the_paper_says(
    scale: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A formula that left something out would promise what no cluster keeps."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*torchrun, "-m", "tests.engines.scale_worker", str(tmp_path / "found.json")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=240,
    )  # fmt: skip
    everyone = json.loads((tmp_path / "found.json").read_text())
    for name, shapes in MODELS.items():
        monkeypatch.setattr(plan, "OPERATIONS_PER_BYTE", 0 if name == "by rows too" else 1000)
        plan.make_plan.cache_clear()
        weights = [scale.Weight(n, d) for n, d in shapes]
        expected = scale.cost(weights, 2)
        assert expected.whole == (len(shapes) if name == "whole" else 2)
        for rank, found in enumerate(each[name] for each in everyone):
            received = found.get("alltoall_base_", 0) + found.get("all_gather_into_tensor", 0)
            # DTensor pads an uneven shard to the longest.
            padding = sum((n % 2) * d * 4 for n, d in shapes) if name == "by rows too" else 0
            assert 0 <= received - int(expected.received[rank]) <= padding
            assert found["allreduce_"] == 8 * len(shapes)
            counted = int(expected.operations[rank])
            assert counted <= found["operations"] <= counted * (1 + 1 / 12)
    plan.make_plan.cache_clear()

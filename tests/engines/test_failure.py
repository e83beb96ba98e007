"""Weights that have no energy stop every rank, with the reason, and none of them hangs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.engines.failure_worker import Cell
from tests.engines.launch import run_in_processes

pytestmark = pytest.mark.engines

ENGINES = {
    "torch": ["ddp", "ddp-unused", "ddp-static", "ddp-whole", "fsdp2", "hsdp-2x1", "tp"],
    "deepspeed": [f"zero-{stage}" for stage in range(4)],
}
# Under DDP each rank has some of the layers; of a shard, the first rank has both neurons of the pair or one of them.
SPOILED = [("hidden", "nan"), ("back", "nan"), ("hidden", "pair"), ("back", "far pair")]

FEW = SPOILED[1:3]
# One rank has the whole matrix, and it alone can tell.
WHOLE = [("hidden", "nan", "minimal_angle"), ("back", "nan", "srip"), ("hidden", "huge", "soft_orthogonality")]


@pytest.mark.parametrize("library", ENGINES)
def test_every_rank_says_why(library: str) -> None:
    """A rank would wait for another that stopped, until somebody looks after the job the next morning."""
    if library == "deepspeed" and find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed (DS_BUILD_OPS=0 pip install deepspeed)")
    cells = [Cell(engine, *one) for engine in ENGINES[library] for one in SPOILED if engine == "ddp" or one in FEW]
    cells += [Cell(engine, *one) for engine in ENGINES[library] for one in WHOLE]
    results: dict[str, Any] = run_in_processes(cells, 2, worker="tests.engines.failure_worker", timeout=280)
    for cell in cells:
        ranks = results[cell.name]
        assert len(ranks) == 2
        reason = {"nan": "not finite", "huge": "the soft_orthogonality of"}.get(cell.what, "softening")
        for said in ranks:
            assert reason in said, (cell, ranks)
            assert f"neuron group '{cell.layer}'" in said, (cell, ranks)
            assert "sound model" not in said, (cell, ranks)

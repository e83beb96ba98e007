"""`from_pretrained(tp_plan="auto")`: models of transformers by their own plan, in two real processes against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engines import tp_worker
from tests.engines.launch import Named, run_in_processes


class Argument(str):
    """A word for the worker."""

    @property
    def name(self) -> str:
        return str(self)


@pytest.mark.engines
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Lambda would be another under tensor parallel, or packed experts would be cut at the wrong rows."""
    tp_worker.save(tmp_path)
    arguments: list[Named] = [Argument(tmp_path)]
    two = run_in_processes(arguments, 2, worker="tests.engines.tp_worker")
    one = tp_worker.results(tmp_path)
    assert two.keys() == one.keys()
    for kind in tp_worker.CONFIGS:
        trained, plain = f"{kind} True", f"{kind} False"
        assert two[trained].keys() == one[trained].keys()
        moved = {}
        for name in one[trained]:
            moved[name] = (one[trained][name] - one[plain][name]).abs().max().item()
            torch.testing.assert_close(two[trained][name], one[trained][name], rtol=0, atol=1e-9)
        assert all(moved[name] > 1e-6 for name in moved if name.endswith("proj.weight")), moved  # the penalty is there

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
    one, plain = (tp_worker.results(tmp_path, penalty) for penalty in (True, False))
    for kind, trained in one.items():
        moved = {name: (trained[name] - plain[kind][name]).abs().max().item() for name in trained}
        assert all(moved[name] > 1e-6 for name in moved if name.endswith("proj.weight")), moved  # the penalty is there
        for name in trained:
            torch.testing.assert_close(two[kind][name], trained[name], rtol=0, atol=1e-9)

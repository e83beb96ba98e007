"""The energy of sentence embeddings on two real processes against one with the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.engines.launch import run_in_processes
from tests.integrations import sentences

pytestmark = [pytest.mark.engines, pytest.mark.integrations]

pytest.importorskip("sentence_transformers")
WEIGHT = 2.0


@dataclass(frozen=True)
class Step:
    name: str


@pytest.mark.parametrize("which", sentences.on_ranks())
def test_two_processes_do_what_one_does(which: str) -> None:
    """Embeddings would only repel those of their own process, or harder the more processes there are."""
    steps = [Step(f"{each}/{weight}") for each in sentences.on_ranks() for weight in (0.0, WEIGHT)]
    two = run_in_processes(steps, 2, worker="tests.integrations.sentences")
    one = {step.name: sentences.step(step.name) for step in steps if step.name.startswith(f"{which}/")}
    without, with_energy = f"{which}/0.0", f"{which}/{WEIGHT}"
    moved = 0.0
    # The losses themselves are of each process's own batch: what is compared is what the energy adds.
    for name in one[without]:
        of_one = one[with_energy][name] - one[without][name]
        of_two = two[with_energy][name] - two[without][name]
        close = 1e-4 if name == "logged" else 1e-10
        assert (of_one - of_two).abs().max().item() <= close, name
        moved = max(moved, of_one.abs().max().item() if name != "logged" else 0.0)
    assert moved > 1e-3

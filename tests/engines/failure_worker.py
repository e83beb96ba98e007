"""One step on weights that have no energy, for each cell named; what every rank raised is what comes back.

torchrun --standalone --nproc_per_node 2 -m tests.engines.failure_worker OUTPUT.pt ENGINE/LAYER/WHAT/OBJECTIVE...
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hf_mhe import MHEConfig, MHEError, MHERegularizer
from tests.engines import deepspeed_worker, zoo
from tests.engines.launch import leave_processes
from tests.engines.wrapping import part_of_batch, wrap

CONFIG = MHEConfig(hidden_weight=0.7, output_weight=0.3, output=["back"])


@dataclass(frozen=True)
class Cell:
    """`engine` as `wrapping.wrap` has it, or `zero-N`; `layer` is spoiled: its weight has a `nan` or a `pair`, or is
    `huge`.
    """

    engine: str
    layer: str
    what: str
    objective: str = "energy"

    @property
    def name(self) -> str:
        return f"{self.engine}/{self.layer}/{self.what}/{self.objective}"


def spoil(model: nn.Module, layer: str, what: str) -> None:
    weight = model.get_parameter(f"{layer}.weight")
    rows = weight.T if layer == "transposed" else weight
    with torch.no_grad():
        if what == "nan":
            rows[0, 0] = float("nan")
        elif what == "pair":
            rows[0] = 2 * rows[1]  # both in the first rank's shard
        elif what == "far pair":
            rows[0] = 2 * rows[-1]
        elif what == "huge":
            rows *= 1e12


def run(cell: Cell) -> str:
    """What this rank raised in a step, or nothing; a step that follows, on a sound model, shows that no rank hangs."""
    said = ""
    for sound in (False, True):
        inner = zoo.make(torch.float32)
        if not sound:
            spoil(inner, cell.layer, cell.what)
        stage = int(cell.engine[-1]) if cell.engine.startswith("zero") else None
        if stage is None:
            model: Any = wrap(inner, cell.engine)
        else:
            model = deepspeed_worker.initialize(deepspeed_worker.Cell(stage), inner)
        exact = {"softening": 0} if cell.objective == "energy" else {}
        config = replace(CONFIG, objective=cell.objective, **exact)
        regularizer = MHERegularizer(model, config, divide_work=cell.engine != "ddp-whole")
        regularizer.step = 2  # at the first two steps the ratio of gradients is taken, for which every rank walks all
        inputs = zoo.part(zoo.batch(0, 16), *part_of_batch(cell.engine))
        try:
            loss = regularizer(model(**inputs))
            (loss if stage is None else model).backward(*(() if stage is None else (loss,)))
        except MHEError as error:
            said += f"{'the sound model: ' if sound else ''}{error}"
        if stage is not None:
            model.destroy()
        torch.distributed.barrier()
    return said


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    results = {}
    for name in sys.argv[2:]:
        said: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(said, run(Cell(*name.split("/"))))
        results[name] = said
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

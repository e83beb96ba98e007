"""One backward pass of a loss with the energy of its outputs, for each cell named, in whatever world this is part of.

torchrun --standalone --nproc_per_node 2 -m tests.engines.outputs_worker OUTPUT.pt ENGINE/DTYPE/CASE...
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_mhe import EnergyLoss, MHEError
from tests.engines.launch import leave_processes

ROWS, INPUTS, DIMENSION, SEQUENCE = 13, 6, 5, 4
CASES = ["plain", "labels", "mask", "labels and mask", "tokens", "one each", "all on one", "classes apart"]
BAD = ["nan", "shape", "dimension", "labels on one"]


@dataclass(frozen=True)
class Cell:
    """`engine` is `ddp`, `fsdp2` or `sum`, a loop that adds up the gradients of all ranks; `dtype` of torch."""

    engine: str
    dtype: str
    case: str

    @property
    def name(self) -> str:
        return f"{self.engine}/{self.dtype}/{self.case}"


def make(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, DIMENSION)).to(dtype)


def batch(case: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The whole batch: inputs, and labels and a mask where the case has them."""
    generator = torch.Generator().manual_seed(1)
    leading = (ROWS, SEQUENCE) if case == "tokens" else (2,) if case in ("one each", "all on one") else (ROWS,)
    made = {"inputs": torch.randn(*leading, INPUTS, generator=generator, dtype=torch.float64).to(dtype)}
    if "labels" in case:
        made["labels"] = torch.randint(4, leading, generator=generator)
        made["labels"][3] = -100
    if case == "classes apart":  # each rank has one class; the pairs that count lie between ranks
        made["labels"] = (torch.arange(ROWS) >= cuts(case, 2)[1]).long()
    if "mask" in case or case == "tokens":
        made["mask"] = torch.randint(2, leading, generator=generator)
    return made


def cuts(case: str, ranks: int) -> list[int]:
    """Where the parts of the ranks begin and end: uneven, and with three ranks the middle one has nothing."""
    if ranks == 1:
        return [0, ROWS]
    if case == "all on one":  # two rows on the first rank, and none on the others
        return [0, *[2] * ranks]
    if case == "one each":
        return [0, 1, *[2] * (ranks - 1)]
    return [0, *[5] * (ranks - 1), ROWS]


def wrap(model: nn.Module, engine: str) -> nn.Module:
    if engine == "ddp":
        return DistributedDataParallel(model)
    return fully_shard(model) if engine == "fsdp2" else model


def run(cell: Cell) -> dict[str, Tensor]:
    """The energy that this rank has, and the gradient of each parameter after the engine reduced it.

    The rest of the loss is the mean of the squared outputs over the whole batch, as a rank's share times the ranks.
    """
    dtype = getattr(torch, cell.dtype)
    rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_one_of_several() else (0, 1)
    inner = make(dtype)
    model = wrap(inner, cell.engine) if ranks > 1 else inner
    whole = batch(cell.case, dtype)
    start, stop = cuts(cell.case, ranks)[rank : rank + 2]
    part = {name: tensor[start:stop] for name, tensor in whole.items()}
    outputs = model(part.pop("inputs"))
    energy = EnergyLoss()(outputs, **part)
    task = ranks * outputs.square().sum() / whole["inputs"].shape[0]
    (0.3 * task + 0.7 * energy).backward()
    found = {name: gradient(value) for name, value in inner.named_parameters()}
    if cell.engine == "sum" and ranks > 1:
        for value in found.values():
            torch.distributed.all_reduce(value)
            value /= ranks
    return {**found, "energy": energy.detach()}


def gradient(parameter: nn.Parameter) -> Tensor:
    grad = parameter.grad
    assert grad is not None
    return grad.full_tensor() if isinstance(grad, DTensor) else grad.clone()


def refusal(case: str) -> str:
    """What this rank raises where only the last rank's embeddings are wrong."""
    last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
    embeddings = torch.randn(4, DIMENSION)
    labels = torch.arange(4) if case == "labels on one" and last else None
    if last and case == "nan":
        embeddings[2, 1] = float("nan")
    if last and case == "shape":
        embeddings = embeddings[0]
    if last and case == "dimension":
        embeddings = embeddings[:, 1:]
    try:
        EnergyLoss()(embeddings, labels)
    except MHEError as error:
        return str(error)
    return ""


def is_one_of_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def on_every_rank(name: str) -> Any:
    """The results of a cell on every rank, those of the first with the energies of all."""
    if name in BAD:
        said: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(said, refusal(name))
        return said
    found = run(Cell(*name.split("/")))
    energies: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(energies, found["energy"])
    return {**found, "energies": torch.stack(energies)}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    results = {name: on_every_rank(name) for name in sys.argv[2:]}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

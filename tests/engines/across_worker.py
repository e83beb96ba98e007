"""Whole modules pushed apart, in whatever world this process is part of, for each cell named.

torchrun --standalone --nproc_per_node 2 -m tests.engines.across_worker OUTPUT.pt CELL...
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from hf_mhe import MHEConfig, MHEError, MHERegularizer
from tests.engines.launch import leave_processes
from tests.engines.wrapping import make_mesh
from tests.engines.zoo import part

STEPS, GLOBAL_BATCH, VOCABULARY = 3, 8, 29
CONFIG = MHEConfig(
    hidden_weight=0.0, output_weight=0.0, across=["experts", "heads", "layers"], across_weight=0.3, log_groups=True
)


@dataclass(frozen=True)
class Cell:
    """One training.

    engine: `one`, `ddp`, `ddp-unused`, `fsdp2`, `fsdp2-kept`, `hsdp-1x2`, `hsdp`; `zero`, DeepSpeed in float32 and of
        the stage that `how` begins with, with the optimizer offloaded where it ends in `o`; or `placed`, without an
        optimizer step: the gradient of the penalty alone, the parameters placed as `how` says, one letter for each
        axis of a mesh: `r` for a copy on each rank, or a digit for the dimension that is sharded. With `one`, `how`
        may be `float32`.
    model: `mixtral`, upcycled, with experts in tensors; or `listed`, with experts in a list.
    roles: whether the neurons are regularized too.
    """

    engine: str
    model: str = "mixtral"
    roles: bool = False
    how: str = ""

    @property
    def name(self) -> str:
        return f"{self.engine}/{self.model}/{self.roles}/{self.how}"

    @staticmethod
    def of(name: str) -> Cell:
        engine, model, roles, how = name.split("/")
        return Cell(engine, model, roles == "True", how)


class Listed(nn.Module):
    """Blocks with three experts in a list, all of which are asked; the last one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "router": nn.Linear(6, 3),
                    "experts": nn.ModuleList(
                        nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6)) for _ in range(3)
                    ),
                }
            )
            for _ in range(2)
        )
        self.head = nn.Linear(6, VOCABULARY)
        for block in self.layers:
            block["experts"][2].requires_grad_(False)  # type: ignore[index]

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        states = self.embedding(input_ids)
        for block in self.layers:
            weights = block["router"](states).softmax(-1)  # type: ignore[index]
            each = torch.stack([expert(states) for expert in block["experts"]], -1)  # type: ignore[index]
            states = states + (each * weights.unsqueeze(-2)).sum(-1)
        logits = self.head(states)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return CausalLMOutput(loss=loss)


def make(cell: Cell) -> Any:
    torch.manual_seed(0)
    if cell.model == "listed":
        return Listed().double()
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=12,
            intermediate_size=10,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            num_local_experts=3,
            num_experts_per_tok=3,
            use_cache=False,
            experts_implementation="eager",  # the others take no float64
        )
    ).double()
    upcycle(model)
    return model


def upcycle(model: Any) -> None:
    """All experts of a layer become its first."""
    with torch.no_grad():
        for layer in model.model.layers:
            for stack in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                stack.copy_(stack[:1].expand_as(stack).clone())


def batch(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (GLOBAL_BATCH, 5), generator=generator)
    return {"input_ids": tokens, "labels": tokens}


def wrap(model: Any, engine: str) -> nn.Module:
    if engine == "one":
        return model
    if engine.startswith("ddp"):
        return DistributedDataParallel(model, find_unused_parameters=engine == "ddp-unused")
    world = torch.distributed.get_world_size()
    copies = {"hsdp-1x2": 1, "hsdp": 2}.get(engine)
    mesh = make_mesh(shards=world) if copies is None else make_mesh(copies=copies, shards=world // copies)
    options: dict[str, Any] = {"reshard_after_forward": False} if engine == "fsdp2-kept" else {}
    for layer in model.model.layers if hasattr(model, "model") else model.layers:
        if isinstance(layer, nn.ModuleDict):
            continue  # its parts are called one by one: the root has them
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def run(cell: Cell) -> dict[str, Tensor]:
    model = make(cell)
    config = dataclasses.replace(CONFIG, hidden_weight=0.5, output_weight=0.2) if cell.roles else CONFIG
    if cell.model == "listed":
        config = dataclasses.replace(config, across=["experts", "layers"])
    if cell.engine == "placed":
        return placed(model, config, cell.how)
    if cell.engine == "zero":
        return by_deepspeed(model.float(), config, cell.how)
    if cell.how == "float32":
        model = model.float()
    world, rank = (
        (1, 0) if cell.engine == "one" else (torch.distributed.get_world_size(), torch.distributed.get_rank())
    )
    model = wrap(model, cell.engine)
    regularizer = MHERegularizer(model, config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    penalties = []
    for step in range(STEPS):
        loss = model(**part(batch(step), rank, world)).loss
        total = regularizer(loss)
        penalties.append((total - loss).detach())
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    found = {name: whole(value.detach()) for name, value in inner.named_parameters()}
    penalty = torch.stack(penalties)
    if world > 1:
        torch.distributed.all_reduce(penalty)  # of a rank's share times their number, or all of it: the mean is it
    record = regularizer.logs()
    logged = torch.tensor([record[f"mhe_across_energy/{kind}"] for kind in config.across or ()], dtype=torch.float64)
    return {**found, "penalty": penalty / world, "logged": logged}


def by_deepspeed(model: Any, config: MHEConfig, how: str) -> dict[str, Tensor]:
    """The same steps, taken by DeepSpeed's engine; under ZeRO 3 what the penalty is refused with, as bytes."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled on first use, a minute, for inference
    zero: dict[str, Any] = {"stage": int(how[0]), "reduce_bucket_size": 500}
    if how.endswith("o"):
        zero["offload_optimizer"] = {"device": "cpu"}
    settings = {
        "train_batch_size": GLOBAL_BATCH,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    regularizer = MHERegularizer(engine, config)
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    penalties = []
    for step in range(STEPS):
        loss = engine(**part(batch(step), rank, world)).loss
        try:
            total = regularizer(loss)
        except MHEError as error:
            return {"refused": torch.tensor(list(str(error).encode()))}
        penalties.append((total - loss).detach())
        engine.backward(total)
        engine.step()
    record = regularizer.logs()
    logged = torch.tensor([record[f"mhe_across_energy/{kind}"] for kind in config.across or ()], dtype=torch.float64)
    named = {name: value.detach().clone() for name, value in model.named_parameters()}
    return {**named, "penalty": torch.stack(penalties), "logged": logged}


def placed(model: Any, config: MHEConfig, how: str) -> dict[str, Tensor]:
    """The gradient of the penalty, the experts and projections placed by hand."""
    if how:
        world = torch.distributed.get_world_size()
        mesh = make_mesh(**({"all": world} if len(how) == 1 else {"first": 2, "second": world // 2}))
        placements = [Replicate() if each == "r" else Shard(int(each)) for each in how]
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.dim() > max([0, *(p.dim for p in placements if isinstance(p, Shard))]):
                    sharded = nn.Parameter(distribute_tensor(parameter.detach(), mesh, placements))
                    setattr(module, name, sharded)
    regularizer = MHERegularizer(model, config)
    penalty = regularizer.penalty()
    penalty.backward()
    named = dict(model.named_parameters())
    return {"penalty": penalty.detach(), **{n: whole(p.grad) for n, p in named.items() if p.grad is not None}}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    results = {name: run(Cell.of(name)) for name in sys.argv[2:]}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, sys.argv[1])
    leave_processes()

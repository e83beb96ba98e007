"""What a budget has to know of a model's groups and of the ranks that divide the work on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.budget.allotment import Candidate
from hf_mhe.training.engines import Managed, Part, averaging_ranks, find_engine, owners, sharded_rows


def candidates(model: nn.Module, groups: list[NeuronGroup], weight: Callable[[str], float]) -> list[Candidate]:
    """The groups as a budget sees them; `weight` gives a role's in the penalty."""
    # DeepSpeed's ranks walk the neurons of every weight together, all of them.
    whole = find_engine(model) is not None or owners(groups) is not None
    managed = Managed(model)
    where = [sharded_rows(group, [managed.parameter(tensor) for tensor in group.tensors()]) for group in groups]
    return [
        Candidate(group.n, group.d, weight(group.role), whole, *place)
        for group, place in zip(groups, where, strict=True)
    ]


def dividing_ranks(model: nn.Module, groups: list[NeuronGroup], part: Part, *, divide_work: bool) -> int:
    """By how many ranks the work on each of the groups is divided, at least; `part` is this rank's under DDP."""
    engine = find_engine(model)
    ranks = owners(groups) or (averaging_ranks(engine) if engine is not None and divide_work else None)
    if ranks is not None:
        return int(torch.distributed.get_world_size(ranks))
    managed = Managed(model)
    meshes = [managed.parameter(tensor) for group in groups for tensor in group.tensors()]
    return min(tensor.device_mesh.size() if isinstance(tensor, DTensor) else part.ranks for tensor in meshes)

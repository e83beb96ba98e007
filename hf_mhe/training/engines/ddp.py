"""DDP: each process holds whole parameters and computes its share of the groups; the all-reduce completes the penalty.

Note [Work divided]
DDP averages gradients over the ranks. A rank that computes some of the groups, scaled by the number of ranks, and none
of the others, therefore has the whole penalty's gradient after the reduction that takes place anyway, and before
clipping, whatever was accumulated without it. That holds only if this very reduction comes: so the work is divided
once after each forward pass that ran inside DDP, and not where a communication hook, a join of uneven inputs, ignored
parameters or DDP's own mixed precision may do something else than average. Every rank decides alike, from the same
settings. An energy that is not finite stops the rank that computed it; the launcher stops the others.

Note [Parameters that the forward pass does not reach]
With `find_unused_parameters=True`, which is how Trainer starts DDP, the forward pass ends with a walk through the
graph from its outputs, and parameters that are not met there are marked as ready before the backward pass begins. The
penalty reaches them all the same, and being ready twice is an error. So the output of the forward pass is tied to the
parameters of the penalty by an identity that gives them no gradient: DDP then waits for the penalty's. A rank's share
is tied to the parameters of the other ranks' shares in the same way, for DDP waits for those too. Rejected: adding the
gradient to `.grad` behind DDP's back, which lets the replicas drift apart where kernels are not deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Part(NamedTuple):
    """The share of one rank among `ranks` whose gradients are averaged; of one rank, everything."""

    rank: int = 0
    ranks: int = 1


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def divide(costs: Sequence[int], ranks: int) -> list[int]:
    """The rank that each item falls to, so that the costs are balanced: the dearest first, to who has least."""
    load = [0] * ranks
    owners = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        owners[item] = min(range(ranks), key=load.__getitem__)
        load[owners[item]] += costs[item]
    return owners


class ForwardUnderDDP:
    """A forward hook that notices DDP around the module, and ties the output to the parameters of the penalty.

    Args:
        tensors: gives the tensors that the penalty is computed from.
    """

    def __init__(self, tensors: Callable[[], list[Tensor]]) -> None:
        self.tensors = tensors
        self._part = Part()

    @property
    def part(self) -> Part:
        """What `take_part` will give."""
        return self._part

    def take_part(self) -> Part:
        """This rank's part in the penalty of the forward pass just done; asked again, everything."""
        part, self._part = self._part, Part()
        return part

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output with its first differentiable tensor tied; None, which leaves it as it is, elsewhere than in
        training under DDP."""
        if not module.training or not torch.is_grad_enabled():
            return None
        if torch.compiler.is_compiling():  # DDP is out of sight there
            return self._tied(output)
        ddp = DistributedDataParallel._get_active_ddp_module()
        self._part = Part() if ddp is None else _part(ddp)
        return None if ddp is None else self._tied(output)

    def _tied(self, output: Any) -> Any:
        tensors = self.tensors()
        return change_first(output, lambda tensor: tie(tensor, tensors))[0]


def _part(ddp: DistributedDataParallel) -> Part:
    # Private names of DDP are read for what may make its reduction something else than the average over all ranks.
    unusual = ddp._comm_hooks or ddp._join_config.enable or ddp.parameters_to_ignore or ddp.mixed_precision
    if unusual or ddp._delay_all_reduce_params:
        return Part()
    return Part(torch.distributed.get_rank(ddp.process_group), torch.distributed.get_world_size(ddp.process_group))


def tie(output: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The output, with the tensors in its graph, to which it gives no gradient."""
    tied: Tensor = _Tie.apply(output, *tensors)
    return tied


class _Tie(torch.autograd.Function):
    """Identity in its first argument; the others are in the graph and get no gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = len(parameters)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (gradients[0], *(None,) * ctx.parameters)


def change_first(value: Any, change: Callable[[Tensor], Tensor]) -> tuple[Any, bool]:
    """The value with the first tensor in it that requires a gradient changed, and whether there was one."""
    if isinstance(value, Tensor):
        return (change(value), True) if value.requires_grad else (value, False)
    if isinstance(value, Mapping):
        for key, item in value.items():
            changed, found = change_first(item, change)
            if found:
                value[key] = changed  # type: ignore[index]  # outputs of models are dicts, and are changed in place
                return value, True
    elif type(value) in (tuple, list):
        for index, item in enumerate(value):
            changed, found = change_first(item, change)
            if found:
                return type(value)((*value[:index], changed, *value[index + 1 :])), True
    return value, False

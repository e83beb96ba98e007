"""DDP: each process holds whole parameters and computes its share of the groups; the all-reduce completes the penalty.

Note [Work divided]
DDP averages gradients over the ranks. A rank that computes some of the groups, scaled by the number of ranks, and none
of the others, therefore has the whole penalty's gradient after the reduction that takes place anyway, and before
clipping, whatever was accumulated without it. That holds only if this very reduction comes: so the work is divided
once after each forward pass that ran inside DDP, and not where a communication hook, a join of uneven inputs, ignored
parameters or DDP's own mixed precision may do something else than average, nor in a forward pass without
synchronization. Every rank decides alike, from the same settings.

Note [All ranks stop, or none]
An energy that one rank cannot compute (a weight that is NaN, two neurons that coincide) must not stop that rank
alone: the others would wait for it in DDP's reduction. So it goes on, and puts a NaN into the gradient of one element,
the witness, in place of its share; the reduction takes it to every rank. At the end of the backward pass each of them
looks at the witness, and where it is not finite they tell each other why, and raise together, before the optimizer
steps. Rejected: to ask at each step whether all ranks are well, which is a communication of its own, and waits for the
slowest of them.

Note [Parameters that the forward pass does not reach]
With `find_unused_parameters=True`, which is how Trainer starts DDP, the forward pass ends with a walk through the
graph from its outputs, and parameters that are not met there are marked as ready before the backward pass begins. The
penalty reaches them all the same, and being ready twice is an error. So the output of the forward pass is tied to the
parameters of the penalty by an identity that gives them no gradient: DDP then waits for the penalty's. A rank's share
is tied to the parameters of the other ranks' shares in the same way, for DDP waits for those too. Rejected: adding the
gradient to `.grad` behind DDP's back, which lets the replicas drift apart where kernels are not deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_mhe.errors import MHEError
from hf_mhe.training.backward import at_the_end
from hf_mhe.training.engines.collectives import error_of_any


class Part(NamedTuple):
    """The share of one rank among the `ranks` of a group whose gradients are averaged; of one rank, everything."""

    rank: int = 0
    ranks: int = 1
    group: torch.distributed.ProcessGroup | None = None


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def divide(costs: Sequence[int], ranks: int) -> list[int]:
    """The rank that each item falls to, so that costs are balanced: the most costly first, to the rank with least."""
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
    if unusual or ddp._delay_all_reduce_params or not ddp.require_backward_grad_sync:
        return Part()
    group = ddp.process_group
    return Part(torch.distributed.get_rank(group), torch.distributed.get_world_size(group), group)


def stop_together(penalty: Tensor, witness: Tensor, part: Part, error: MHEError | None) -> Tensor:
    """A rank's share of the penalty, 0-dim, in whose backward pass every rank raises if one has an error.

    Args:
        penalty: this rank's share; what it is does not matter where there is an error.
        witness: the same parameter on every rank of the part; see the note above.
        part: this rank's.
        error: why this rank has no share, or None.
    """

    def look(_: Tensor) -> None:
        if witness.grad is None or bool(torch.isfinite(witness.grad.reshape(-1)[0])):
            return
        why = error_of_any(error, part.group)
        if why is not None:  # or a gradient scaler's overflow was it
            raise why

    if error is not None:
        penalty = penalty + math.nan * witness.reshape(-1)[0].to(penalty.dtype)
    return at_the_end(penalty, look)


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

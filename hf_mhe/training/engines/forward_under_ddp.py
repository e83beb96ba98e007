"""A forward pass inside DDP: noticed, because its reduction completes a penalty whose work is divided.

Note [Parameters that the forward pass does not reach]
With `find_unused_parameters=True`, which is how Trainer starts DDP, the forward pass ends with a walk through the
graph from its outputs, and parameters that are not met there are marked as ready before the backward pass begins. The
penalty reaches them all the same, and being ready twice is an error. So the output of the forward pass is tied to the
parameters of the penalty by an identity that gives them no gradient: DDP then waits for the penalty's. A rank's share
is tied to the parameters of the other ranks' shares in the same way, for DDP waits for those too. Rejected: adding the
gradient to `.grad` behind DDP's back, which lets the replicas drift apart where kernels are not deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_mhe.training.engines.forward_output import change_first


class RankShare(NamedTuple):
    """Which rank this is among the `ranks` that divide the penalty; one rank alone computes everything."""

    rank: int = 0
    ranks: int = 1
    process_group: torch.distributed.ProcessGroup | None = None


class ForwardUnderDDP:
    """A forward hook that notices DDP around the module, and ties the output to the parameters of the penalty.

    Args:
        tensors: gives the tensors that the penalty is computed from.
    """

    def __init__(self, tensors: Callable[[], list[Tensor]]) -> None:
        self.tensors = tensors
        self._share = RankShare()

    @property
    def share(self) -> RankShare:
        """What `take_share` will give."""
        return self._share

    def take_share(self) -> RankShare:
        """This rank's share in the penalty of the forward pass just done; asked again, everything."""
        share, self._share = self._share, RankShare()
        return share

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output with its first differentiable tensor tied; None, which leaves it as it is, elsewhere than in
        training under DDP."""
        if not module.training or not torch.is_grad_enabled():
            return None
        if torch.compiler.is_compiling():  # DDP is out of sight there
            return self._tied(output)
        ddp = DistributedDataParallel._get_active_ddp_module()
        self._share = RankShare() if ddp is None else _share_under(ddp)
        return None if ddp is None else self._tied(output)

    def _tied(self, output: Any) -> Any:
        tensors = self.tensors()
        return change_first(output, lambda tensor: tie(tensor, tensors))[0]


def _share_under(ddp: DistributedDataParallel) -> RankShare:
    # Private names of DDP are read for what may make its reduction something else than the average over all ranks.
    unusual = ddp._comm_hooks or ddp._join_config.enable or ddp.parameters_to_ignore or ddp.mixed_precision
    if unusual or ddp._delay_all_reduce_params or not ddp.require_backward_grad_sync:
        return RankShare()
    among = ddp.process_group
    return RankShare(torch.distributed.get_rank(among), torch.distributed.get_world_size(among), among)


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

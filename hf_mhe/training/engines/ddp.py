"""DDP: each process holds whole parameters and computes its share of the groups; the all-reduce completes the penalty.

Note [Work divided]
DDP averages gradients over the ranks. A rank that computes some of the groups, scaled by the number of ranks, and none
of the others, therefore has the whole penalty's gradient after the reduction that DDP makes anyway, and before
clipping, whatever was accumulated without it. That holds only if this very reduction comes: so the work is divided
once after each forward pass that ran inside DDP, and not where a communication hook, a join of uneven inputs, ignored
parameters or DDP's own mixed precision may do something else than average, nor in a forward pass without
synchronization. Every rank decides alike, from the same settings.

Note [All ranks stop, or none]
An energy that one rank cannot compute (a weight that is NaN, two neurons that coincide) must not stop that rank
alone: the others would wait for it in DDP's reduction. So it goes on, and puts a NaN into the gradient of one element,
the witness, in place of its share; the reduction takes it to every rank. At the end of the backward pass each of them
looks at the witness, and where it is not finite they exchange the reason, and raise together, before the optimizer
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
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.backward import at_the_end
from hf_mhe.training.engines.collectives import error_of_any
from hf_mhe.training.engines.forward_output import change_first
from hf_mhe.training.engines.one_process import OneProcess, energies_of_whole, weighted
from hf_mhe.training.engines.plan import Workload, balance
from hf_mhe.training.terms import PenaltyTerms, Term


class RankShare(NamedTuple):
    """Which rank this is among the `ranks` that divide the penalty; one rank alone computes everything."""

    rank: int = 0
    ranks: int = 1
    process_group: torch.distributed.ProcessGroup | None = None


class DDP(OneProcess):
    """Every process holds whole parameters, and computes its share of the groups where DDP averages the gradients.

    Args:
        forward: what noticed that the current forward pass ran inside DDP.
    """

    def __init__(self, forward: ForwardUnderDDP) -> None:
        self._forward = forward

    def workload(self, groups: Sequence[NeuronGroup]) -> Workload:
        """See `Engine`."""
        return super().workload(groups)._replace(ranks=self._forward.share.ranks)

    def evaluate_due(self, terms: Sequence[Term]) -> PenaltyTerms:
        """See `Engine`; of one forward pass the work is divided once, and asked again this rank has everything."""
        share = self._forward.take_share()
        return self.evaluate(terms) if share.ranks == 1 else _evaluate_share(terms, share)


def _evaluate_share(terms: Sequence[Term], share: RankShare) -> PenaltyTerms:
    """The terms that fall to this rank; what it refuses is raised in the backward pass, on every rank."""
    ranks = balance([term.operations for term in terms], share.ranks)
    mine = [index for index in range(len(terms)) if ranks[index] == share.rank]
    tensors = [tensor for term in terms for tensor in term.group.tensors()]
    # The ranks' shares are put together: all of one dtype, whichever groups a rank has.
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    energies = torch.zeros(len(terms), dtype=dtype, device=tensors[0].device)
    penalty, error = energies.new_zeros(()), None
    try:
        if mine:
            own = share.ranks * energies_of_whole([terms[index] for index in mine]).to(dtype)
            penalty = weighted([terms[index] for index in mine], own).to(penalty.device)
            energies[mine] = own.detach().to(energies.device)
    except MHEError as refused:
        error = refused
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    tied = _stop_together(_tie(penalty, wanted), wanted[0], share, error)
    return PenaltyTerms(tied, energies, [term.group for term in terms], share.ranks)


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
        return change_first(output, lambda tensor: _tie(tensor, tensors))[0]


def _share_under(ddp: DistributedDataParallel) -> RankShare:
    # Private names of DDP are read for what may make its reduction something else than the average over all ranks.
    unusual = ddp._comm_hooks or ddp._join_config.enable or ddp.parameters_to_ignore or ddp.mixed_precision
    if unusual or ddp._delay_all_reduce_params or not ddp.require_backward_grad_sync:
        return RankShare()
    among = ddp.process_group
    return RankShare(torch.distributed.get_rank(among), torch.distributed.get_world_size(among), among)


def _stop_together(penalty: Tensor, witness: Tensor, share: RankShare, error: MHEError | None) -> Tensor:
    """A rank's share of the penalty, 0-dim, in whose backward pass every rank raises if one has an error.

    Args:
        penalty: this rank's share; what it is does not matter where there is an error.
        witness: the same parameter on every rank; see the note above.
        share: which rank this is, of which.
        error: why this rank has no share, or None.
    """

    def look(_: Tensor) -> None:
        if witness.grad is None or bool(torch.isfinite(witness.grad.reshape(-1)[0])):
            return
        why = error_of_any(error, share.process_group)
        if why is not None:  # or a gradient scaler's overflow was it
            raise why

    if error is not None:
        penalty = penalty + math.nan * witness.reshape(-1)[0].to(penalty.dtype)
    return at_the_end(penalty, look)


def _tie(output: Tensor, tensors: Sequence[Tensor]) -> Tensor:
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

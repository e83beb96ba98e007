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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.backward import at_the_end
from hf_mhe.training.engines.collectives import error_of_any
from hf_mhe.training.engines.forward_under_ddp import ForwardUnderDDP, RankShare, tie
from hf_mhe.training.engines.one_process import OneProcess, energies_of_whole, weighted
from hf_mhe.training.engines.plan import Workload, balance
from hf_mhe.training.terms import PenaltyTerms, Term


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
    walkers = balance([term.operations for term in terms], share.ranks)
    mine = [index for index, walker in enumerate(walkers) if walker == share.rank]
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
    tied = _stop_together(tie(penalty, wanted), wanted[0], share, error)
    return PenaltyTerms(tied, energies, [term.group for term in terms], share.ranks)


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

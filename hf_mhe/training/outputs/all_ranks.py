"""The energy of the rows of all ranks: each rank has its value, and the gradient on the rows that it put in.

Note [Whole energy, world times the gradient]
DDP and FSDP average the gradients of parameters over the ranks. A rank's parameters have the part of the gradient that
comes through its own rows; the whole is the sum of these parts. So each rank returns the whole energy, the same on all
of them, and its gradient on the own rows is that of the whole energy times the number of ranks: their mean is the
gradient that one process with the whole batch has, a loss that is logged, on one rank or as a mean over them, is its
energy, and the rest of the loss, a mean over the rank's own examples, is averaged beside it as ever. Each rank walks
its own rows against all, so that the work is divided, and nothing is sent in the backward pass.

Rejected: each rank returns its share of the energy, times the number of ranks, which has the same gradient and saves
one number's reduction, but no rank logs the energy. A gather with a gradient of its own
(`torch.distributed.nn.all_gather`): each rank walks all pairs, and the backward pass has a collective, which hangs
where one rank has no use for the gradient. A gather whose gradient is kept for the own rows alone, as contrastive
losses have it: averaged, the gradient is the whole one divided by the number of ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy import Potential
from hf_mhe.energy.autograd.once import Scale
from hf_mhe.energy.autograd.selected import refuse_not_finite
from hf_mhe.energy.autograd.share import share_and_gradient
from hf_mhe.energy.precision import energy_dtype
from hf_mhe.errors import MHEError
from hf_mhe.training.outputs.as_rows import as_rows

ProcessGroup = torch.distributed.ProcessGroup


class _Said(NamedTuple):
    """What a rank says of its rows before they are sent."""

    error: str | None
    rows: int = 0
    d: int = 0
    dtype: str = ""
    has_labels: bool = False


class _Everyone(NamedTuple):
    """The rows of all ranks below each other, those of this rank from `start` on, and their classes."""

    rows: Tensor
    start: int
    classes: Tensor | None


@torch.compiler.disable
def energy_of_all_ranks(
    embeddings: Tensor, labels: Tensor | None, mask: Tensor | None, potential: Potential, group: ProcessGroup | None
) -> Tensor:
    """The mean energy of the embeddings of all ranks of a group; every one of them has to call this.

    Returns:
        0-dim tensor, the same on every rank. Its gradient on this rank's embeddings is multiplied by the number of
        ranks; see the note above.

    Raises:
        MHEError: on every rank, with the reason of the first that has one.
    """
    error: MHEError | None = None
    try:
        own, classes = as_rows(embeddings, labels, mask).taking_part()
        said = _Said(None, len(own), own.shape[1], str(own.dtype), classes is not None)
    except MHEError as refused:
        error, said = refused, _Said(str(refused))
    # Lengths differ, and an error has to reach the ranks that have none: both travel before the rows do.
    everyone_said: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyone_said, said, group=group)
    for rank, other in enumerate(everyone_said):
        if other.error is not None:
            raise error or MHEError(f"{other.error} (on rank {rank})")
    _check_alike(everyone_said)
    everyone = _gather(own.detach(), classes, [each.rows for each in everyone_said], group)
    energy: Tensor = _WholeEnergy.apply(own, everyone, potential, group)
    return energy


def _check_alike(said: list[_Said]) -> None:
    """Refuse what ranks cannot put together, in the same words on all of them."""
    kinds = [(each.d, each.dtype, each.has_labels) for each in said]
    if len(set(kinds)) > 1:
        listed = "; ".join(
            f"rank {rank}: {dtype}, d={d}, with{'' if has_labels else 'out'} labels"
            for rank, (d, dtype, has_labels) in enumerate(kinds)
        )
        raise MHEError(
            f"the embeddings of all ranks must be of one dtype and dimension, all with labels or all without; got "
            f"{listed}. EnergyLoss(gather=False) keeps to the rows of each rank"
        )


def _gather(own: Tensor, classes: Tensor | None, counts: list[int], group: ProcessGroup | None) -> _Everyone:
    rank = torch.distributed.get_rank(group)
    rows = _gather_uneven(own, counts, group)
    everyone = None if classes is None else _gather_uneven(classes, counts, group)
    return _Everyone(rows, sum(counts[:rank]), everyone)


def _gather_uneven(own: Tensor, counts: list[int], group: ProcessGroup | None) -> Tensor:
    """The rows of all ranks below each other; sent padded to the longest, for a backend needs them of one shape."""
    longest = max(counts)
    if longest == 0:
        return own
    sent = own.new_zeros(longest, *own.shape[1:])
    sent[: len(own)] = own
    received = own.new_empty(len(counts) * longest, *own.shape[1:])
    torch.distributed.all_gather_into_tensor(received, sent, group=group)
    if min(counts) == longest:
        return received
    parts = received.split(longest)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _WholeEnergy(torch.autograd.Function):
    """The shares of all ranks added up; the gradient on the own rows is ready after the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, everyone: _Everyone, potential: Potential, group: ProcessGroup | None
    ) -> Tensor:
        rows, start, classes = everyone
        share, gradient = 0.0, torch.zeros_like(own)
        if len(rows) > 1:
            wanted = ctx.needs_input_grad[0]
            try:
                share, gradient = share_and_gradient(own, rows, start, potential, classes, gradient=wanted)
            except MHEError:  # of values that every rank has
                refuse_not_finite(rows, what="the embeddings of all ranks, below each other,")
                raise
        ctx.save_for_backward(gradient, own)
        ctx.ranks = torch.distributed.get_world_size(group)
        energy = torch.tensor(share, dtype=torch.float64, device=own.device)
        torch.distributed.all_reduce(energy, group=group)
        return energy.to(energy_dtype(own))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, own = ctx.saved_tensors
        return Scale.apply(upstream * ctx.ranks, gradient, own), None, None, None

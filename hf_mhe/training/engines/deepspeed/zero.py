"""DeepSpeed ZeRO: each rank walks some of the neurons of every group against all of them.

An objective that needs the whole matrix is computed by one rank: see `whole.py`.

Note [How the gradient gets to ZeRO]
ZeRO averages the gradient of a parameter over the ranks, and keeps on each what is its own, as soon as autograd has
accumulated it. So a rank gives autograd the gradient of its own neurons times the number of ranks, and zeros for the
others: the reduction that ZeRO makes anyway completes it, before the loss scale is taken out and before clipping.
The graph is the same on every rank, and so is the order in which parameters are ready: ZeRO fills its buckets in that
order, and reduces them without looking what is in them. Rejected: whole groups divided between the ranks, as under
DDP, where that order would not be the same; and adding to ZeRO's partitions between `backward` and `step`
(`safe_set_local_grad`), where the library is not called, and where clipping and overflow under offload have been
prepared already.

Note [What is kept in memory]
Under ZeRO 3 a parameter is whole while its neurons are walked, in the forward pass, one parameter after the other;
what stays is the gradient of the rank's own neurons, which `deferred.py` gives when it is due. Only a weight that is
made from several parameters (weight norm, LoRA) has gradients of full size.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_mhe.energy import Potential
from hf_mhe.energy.autograd.share import energy_share
from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup
from hf_mhe.neurons.model.weight import AsStored
from hf_mhe.training.engines.collectives import error_of_any
from hf_mhe.training.engines.deepspeed.deferred import LateGradient, RowsOf, everything, gathered
from hf_mhe.training.engines.deepspeed.whole import Reached, Whole
from hf_mhe.training.engines.plan import balance
from hf_mhe.training.mean_energy import with_range
from hf_mhe.training.terms import Term


def is_partitioned(groups: Sequence[NeuronGroup]) -> bool:
    """Whether ZeRO 3 has partitioned a parameter of the groups."""
    return "deepspeed" in sys.modules and any(hasattr(t, "ds_id") for group in groups for t in group.tensors())


def partitioned_over(groups: Sequence[NeuronGroup]) -> torch.distributed.ProcessGroup | None:
    """The ranks that ZeRO 3 has partitioned the parameters over, gathered at the moment or not; None elsewhere.

    Raises:
        MHEError: not all of them are partitioned over the same ranks.
    """
    if "deepspeed" not in sys.modules:
        return None
    partitioned: list[Any] = [tensor for group in groups for tensor in group.tensors() if hasattr(tensor, "ds_id")]
    found = {id(tensor.ds_process_group): tensor.ds_process_group for tensor in partitioned}
    if len(found) > 1:
        raise MHEError(
            f"the parameters are partitioned over {len(found)} different sets of ranks (expert parallel): MHE "
            "supports ZeRO 3 over one; leave those layers out (exclude=...)"
        )
    return next(iter(found.values()), None)


def divided_energies(
    model: nn.Module, terms: Sequence[Term], process_group: torch.distributed.ProcessGroup
) -> list[Tensor]:
    """The objectives of terms, 0-dim, on every rank; every rank of the process group has to call this.

    Their gradient on each rank is that of the rank's own neurons times the number of ranks, or of the terms that it
    computes: its mean is theirs.

    Args:
        model: the module that was given to `deepspeed.initialize`.
        terms: without samples; groups cut from the same parameters are gathered once where they are neighbours.
        process_group: of the ranks that divide the work.

    Raises:
        MHEError: as `hyperspherical_energy`.
    """
    rank, ranks = torch.distributed.get_rank(process_group), torch.distributed.get_world_size(process_group)
    shares: list[Tensor] = []
    walkers, mine = _walkers(terms, ranks), {}
    tensors_of = {id(tensor): tensor for term in terms for tensor in term.group.tensors()}
    late = {key: LateGradient(model, tensor) for key, tensor in tensors_of.items()}
    for _, neighbours in itertools.groupby(terms, key=lambda term: [id(tensor) for tensor in term.group.tensors()]):
        together = list(neighbours)
        tensors = together[0].group.tensors()
        with gathered(model, tensors):
            for group, potential in ((term.group, term.objective.by_rows) for term in together):
                group.check_in_use()
                if potential is None:
                    index = len(shares)
                    whole = Whole(terms[index], tensors, mine=walkers[index] == rank)
                    shares.append(Reached.apply(whole, [late[id(tensor)] for tensor in tensors], *tensors))
                    if walkers[index] == rank:
                        mine[index] = whole
                    continue
                own = slice(group.n * rank // ranks, group.n * (rank + 1) // ranks)
                try:
                    shares.append(_share(group, tensors, own, potential, late))
                except MHEError as error:
                    raise MHEError(f"neuron group {group.name!r}: {error}") from error
    refused = _compute(terms, mine, shares)
    device = shares[0].device
    total: Tensor = _SumOverRanks.apply(torch.stack([share.to(device) for share in shares]), process_group)
    if walkers and total.isnan().any():
        why = error_of_any(refused, process_group)
        if why is not None:  # or an objective came out so, of which the caller says which
            raise why
    return list(total.unbind())


def _walkers(terms: Sequence[Term], ranks: int) -> dict[int, int]:
    """The ranks that compute the objectives that need a whole matrix, by the term's index."""
    wholes = [index for index, term in enumerate(terms) if term.objective.by_rows is None]
    return dict(zip(wholes, balance([terms[index].operations for index in wholes], ranks), strict=True))


def _compute(terms: Sequence[Term], mine: Mapping[int, Whole], shares: list[Tensor]) -> MHEError | None:
    """Add to the shares what this rank computes; what it refuses is a NaN there, and returned: all ranks raise it."""
    refused: MHEError | None = None
    for index, whole in mine.items():
        try:
            shares[index] = shares[index] + whole.compute().to(shares[index])
        except MHEError as error:
            shares[index] = shares[index] + math.nan
            refused = refused or MHEError(f"neuron group {terms[index].group.name!r}: {error}")
    return refused


def _share(
    group: NeuronGroup, tensors: Sequence[Tensor], own: slice, potential: Potential, late: Mapping[int, LateGradient]
) -> Tensor:
    source = group.source
    assert source is not None  # a group of a live model

    def energy_of(own_rows: Tensor, everyone: Tensor) -> Tensor:
        return energy_share(with_range(own_rows), with_range(everyone), own.start, potential)

    if len(tensors) == 1 and isinstance(source.combine, AsStored):
        (parameter,) = tensors
        everyone = group.layout(parameter.detach())

        def rows_of(weight: Tensor) -> Tensor:
            return group.layout(weight)[own]

        own_rows = _OwnRows.apply(parameter, everyone[own], rows_of, late[id(parameter)])
        return energy_of(own_rows, everyone)

    def share_of(values: Sequence[Tensor]) -> Tensor:
        matrix = group.layout(source.combine(dict(zip(source.tensor_names, values, strict=True))))
        return energy_of(matrix[own], matrix)

    share: Tensor = _FromSeveral.apply(share_of, [late[id(tensor)] for tensor in tensors], *tensors)
    return share


class _SumOverRanks(torch.autograd.Function):
    """The sum of the shares; each rank's gradient is that of its own share, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, process_group: torch.distributed.ProcessGroup) -> Tensor:
        ctx.ranks = torch.distributed.get_world_size(process_group)
        total = shares.clone()
        torch.distributed.all_reduce(total, group=process_group)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks * upstream, None


class _OwnRows(torch.autograd.Function):
    """A rank's own rows of a parameter; their gradient is added to the parameter's when that comes."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, rows: Tensor, rows_of: RowsOf, late: LateGradient) -> Tensor:
        ctx.shape, ctx.rows_of, ctx.late = parameter.shape, rows_of, late
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        return ctx.late.add(ctx.rows_of, gradient, ctx.shape), None, None, None


class _FromSeveral(torch.autograd.Function):
    """A share of the energy of a weight that is made from several tensors, whose gradients are added to their own.

    They are ready after the forward pass, for the tensors are gone in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, share_of: Callable[[Sequence[Tensor]], Tensor], late: Sequence[LateGradient], *tensors: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        leaves = [
            with_range(tensor.detach()).requires_grad_(need) for tensor, need in zip(tensors, wanted, strict=True)
        ]
        with torch.set_grad_enabled(any(wanted)):
            share = share_of(leaves)
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        ready = iter(torch.autograd.grad(share, inputs, materialize_grads=True) if inputs else ())
        ctx.gradients = [next(ready) if need else None for need in wanted]
        ctx.late, ctx.dtypes = late, [tensor.dtype for tensor in tensors]
        return share.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        zeros: list[Tensor | None] = []
        for gradient, late, dtype in zip(ctx.gradients, ctx.late, ctx.dtypes, strict=True):
            own = None if gradient is None else (gradient * upstream).to(dtype)
            zeros.append(None if own is None else late.add(everything, own, own.shape))
        return None, None, *zeros

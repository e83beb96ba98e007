"""Sharded terms, evaluated by all ranks of a mesh: weights go to their walkers, gradients back to their holders."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from hf_mhe.energy.autograd.share import energy_share
from hf_mhe.errors import MHEError
from hf_mhe.training.engines.collectives import error_of_any
from hf_mhe.training.engines.dtensor.assignment import Assignment, Parcel
from hf_mhe.training.engines.dtensor.exchange import Arrival, Expected, device_of, exchange

Round = list[list[Parcel]]
"""By rank, the parcels that it walks whole in this round."""


class Rounds:
    """One evaluation of the terms of an assignment; `run` may be called once.

    Args:
        assignment: the terms, and who walks what.
        local: this rank's local tensor of each of the assignment's parameters, no gradient.
        wanted: whether a parameter's gradient is wanted; the same on every rank.

    Attributes:
        values: of the objectives, float64, on the host; the same on every rank.
        gradients: of `sum of factor * objective`, with respect to each local tensor; None where it is not wanted.
    """

    def __init__(self, assignment: Assignment, local: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self._assignment, self._local, self._wanted = assignment, local, wanted
        self._device = device_of(assignment.mesh)  # offloaded parameters come along
        self._refused: MHEError | None = None
        self.values = torch.zeros(len(assignment.terms), dtype=torch.float64)
        self.gradients: list[Tensor | None] = [None] * len(local)

    def run(self) -> None:
        """Walk this rank's share, and put the shares together.

        Raises:
            MHEError: an energy is not defined, on this rank or another; every rank raises it.
        """
        rounds = self._assignment.rounds()
        coming = self._collect(rounds[0]) if rounds else None
        returning: Callable[[], None] | None = None
        for parcels, after in itertools.zip_longest(rounds, rounds[1:]):
            assert coming is not None  # there is one for each round
            arrived = coming.wait(self._assignment.rank)
            coming = None if after is None else self._collect(after)
            found = [self._walk_whole(parcel, tensors) for parcel, tensors in self._assembled(parcels, arrived)]
            if returning is not None:
                returning()
            returning = self._return(parcels, found) if any(self._wanted) else None
        if returning is not None:
            returning()
        for parcel, walker in zip(self._assignment.parcels, self._assignment.walkers, strict=True):
            if walker is None:
                self._walk_rows(parcel)
        self._sum_values()

    def _sum_values(self) -> None:
        values = self.values.to(self._device)
        torch.distributed.all_reduce(values, group=self._assignment.process_group)
        self.values = values.cpu()
        if self.values.isnan().any():  # what `_refuse` leaves
            error = error_of_any(self._refused, self._assignment.process_group)
            if error is not None:  # or an energy came out so, of which the caller says which
                raise error

    def _refuse(self, index: int, error: MHEError) -> None:
        # The others wait in collective calls: this rank goes on, and all raise together.
        self.values[index] = float("nan")
        name = self._assignment.terms[index].group.name
        self._refused = self._refused or MHEError(f"neuron group {name!r}: {error}")

    # --- weights that one rank walks whole

    def _collect(self, parcels: Round) -> Arrival:
        """Send the ranks what this one holds of their parcels, once for each copy that there is of it."""
        assignment, rank = self._assignment, self._assignment.rank
        outgoing: list[list[Tensor]] = []
        incoming: list[list[Expected]] = []
        for k, theirs in enumerate(parcels):
            holdings = [(p, assignment.holdings[p]) for parcel in theirs for p in parcel.parameters]
            outgoing.append([self._local[p] for p, held in holdings if held.copy[rank] == held.copy[k]])
        for k in range(assignment.ranks):
            holdings = [(p, assignment.holdings[p]) for parcel in parcels[rank] for p in parcel.parameters]
            incoming.append(
                [
                    Expected(held.regions[k].shape, self._local[p].dtype)
                    for p, held in holdings
                    if held.copy[k] == held.copy[rank]
                ]
            )
        return exchange(assignment.process_group, outgoing, incoming, self._device)

    def _assembled(self, parcels: Round, arrived: list[list[Tensor]]) -> Iterator[tuple[Parcel, list[Tensor]]]:
        """This rank's parcels, put together from the regions that the ranks hold."""
        assignment, rank = self._assignment, self._assignment.rank
        senders = [iter(tensors) for tensors in arrived]
        for parcel in parcels[rank]:
            tensors = []
            for held in (assignment.holdings[p] for p in parcel.parameters):
                received = [
                    (held.regions[k], next(senders[k]))
                    for k in range(assignment.ranks)
                    if held.copy[k] == held.copy[rank]
                ]
                if len(received) == 1:
                    tensors.append(received[0][1])
                    continue
                assembled = received[0][1].new_empty(held.shape)
                for region, values in received:
                    region.put(assembled, values)
                tensors.append(assembled)
            yield parcel, tensors

    def _walk_whole(self, parcel: Parcel, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of the parcel's parameters, those that are wanted; each a tensor of its own."""
        wanted = [self._wanted[p] for p in parcel.parameters]
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors, wanted, strict=True)]
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        total: list[Tensor] | None = None
        for index in parcel.terms:
            term = self._assignment.terms[index]
            try:
                with torch.set_grad_enabled(bool(inputs)):
                    energy = term.objective.value(term.group.assemble(leaves))
            except MHEError as error:
                self._refuse(index, error)
                continue
            self.values[index] += energy.detach().double().cpu()
            if energy.requires_grad:
                found = torch.autograd.grad(energy, inputs, energy.new_tensor(term.factor), materialize_grads=True)
                if len(inputs) > 1:  # of a sum autograd gives both terms one and the same tensor
                    found = tuple(gradient.clone() for gradient in found)
                total = list(found) if total is None else [a.add_(b) for a, b in zip(total, found, strict=True)]
        return [torch.zeros_like(leaf) for leaf in inputs] if total is None else total

    def _return(self, parcels: Round, found: Sequence[Sequence[Tensor]]) -> Callable[[], None]:
        """Send every rank the gradients of what it holds; what is returned waits for this rank's, and keeps them."""
        assignment, rank = self._assignment, self._assignment.rank
        wanted = [[p for parcel in theirs for p in parcel.parameters if self._wanted[p]] for theirs in parcels]
        gradients = list(zip(wanted[rank], itertools.chain.from_iterable(found), strict=True))
        outgoing = [
            [assignment.holdings[p].regions[k].take(gradient) for p, gradient in gradients]
            for k in range(assignment.ranks)
        ]
        # A view would keep the whole gradient alive until the backward pass.
        outgoing[rank] = [
            own if own.numel() == whole.numel() else own.clone()
            for own, (_, whole) in zip(outgoing[rank], gradients, strict=True)
        ]
        incoming = [
            [Expected(assignment.holdings[p].regions[rank].shape, self._local[p].dtype) for p in theirs]
            for theirs in wanted
        ]
        arrival = exchange(assignment.process_group, outgoing, incoming, self._device)

        def keep() -> None:
            for parameters, arrived in zip(wanted, arrival.wait(rank), strict=True):
                for p, gradient in zip(parameters, arrived, strict=True):
                    self._add_gradient(p, gradient)

        return keep

    def _add_gradient(self, p: int, gradient: Tensor) -> None:
        gradient, before = gradient.to(self._local[p].device), self.gradients[p]
        self.gradients[p] = gradient if before is None else before + gradient

    # --- weights of which every rank walks the rows that it holds

    def _walk_rows(self, parcel: Parcel) -> None:
        """This rank's rows against all: their gradient is complete without another rank's work."""
        assignment, rank = self._assignment, self._assignment.rank
        (index,), (p,) = parcel.terms, parcel.parameters
        parameter, held = assignment.parameters[p], assignment.holdings[p]
        assert isinstance(parameter, DTensor)
        run = held.regions[rank].rows(held.shape)
        assert run is not None  # or the plan would not have it walked by rows
        with torch.no_grad():
            everyone = parameter.redistribute(placements=[Replicate()] * parameter.device_mesh.ndim).to_local()
        own = self._local[p].detach().requires_grad_(self._wanted[p])
        term = assignment.terms[index]
        potential = term.objective.by_rows
        assert potential is not None  # or the plan would not have it walked by rows
        gradient = torch.zeros_like(own)
        try:
            with torch.set_grad_enabled(own.requires_grad):
                share = energy_share(own.flatten(1), everyone.flatten(1), run[0], potential)
        except MHEError as error:
            self._refuse(index, error)
            return
        if held.copy[rank] == held.copy[0]:  # the ranks of one copy hold every row once
            self.values[index] += share.detach().double().cpu()
        if own.requires_grad:
            (gradient,) = torch.autograd.grad(share, own, share.new_tensor(term.factor))
            self._add_gradient(p, self._same_in_all_copies(parameter, gradient))

    def _same_in_all_copies(self, parameter: DTensor, gradient: Tensor) -> Tensor:
        """The first copy's gradient: kernels that add in no fixed order would let the copies drift apart."""
        mesh = parameter.device_mesh
        for axis, placement in enumerate(parameter.placements):
            if isinstance(placement, Replicate) and mesh.size(axis) > 1:
                torch.distributed.broadcast(gradient, group=mesh.get_group(axis), group_src=0)
        return gradient

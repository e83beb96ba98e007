"""The mean energy of stacks of members whose weights are DTensors: FSDP2, HSDP, tensor parallel, or experts per rank.

Note [Members on several ranks]
A Gram matrix is a sum over coordinates, so ranks that hold the same coordinates of all members need only add up their
(m, k, k). A list of experts or layers that FSDP2 shards is held like that. A tensor of all experts it shards by
experts, and of a projection by heads: there the ranks exchange their parts for equal runs of coordinates of all
members, one for each rank of the mesh, copies of the weight included, and the gradient goes back the same way. Beside
its shard a rank has as much once more of one stack, in the weights' dtype, and its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hf_mhe.energy.across import places_in, slope_of
from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup
from hf_mhe.neurons.elements import free_axes
from hf_mhe.neurons.model.weight import AsStored
from hf_mhe.training.engines.dtensor.exchange import Expected, device_of, exchange, process_group_of
from hf_mhe.training.engines.dtensor.regions import Holding, Region, Run, chunk, holding, members, whole
from hf_mhe.training.engines.refuse import refuse_parameter
from hf_mhe.training.engines.stack_energies import Cuts, gradients_of, grams_of, sizes_of
from hf_mhe.training.terms import AcrossTerm


def sharded_energy(term: AcrossTerm, parameter_of: Any) -> Tensor:
    """The mean energy of one stack, 0-dim, on every rank, whose gradient reaches each parameter's local tensor.

    Every rank of the parameters' mesh has to call this with the same term.

    Args:
        term: of whose parameters one at least is a DTensor.
        parameter_of: gives the parameter, as the optimizer has it, of a tensor that is registered in the model.

    Raises:
        MHEError: the members cannot be put side by side; says why.
    """
    cuts = Cuts(term.stack)
    parameters = [_parameter(group, made, parameter_of) for group, made in zip(cuts.groups, cuts.is_made, strict=True)]
    swap = Swap(term, cuts, parameters)
    local = [each.to_local() if isinstance(each, DTensor) else each for each in parameters]
    energy: Tensor = _Sharded.apply(swap, term, torch.is_grad_enabled(), *local)
    return energy


def _parameter(group: NeuronGroup, made: bool, parameter_of: Any) -> Tensor:
    group.check_in_use()
    assert group.source is not None  # a group of a live model
    if made or not isinstance(group.source.combine, AsStored):
        raise MHEError(
            "MHE does not support across=... of a weight that is made from several sharded tensors (an adapter, "
            f"weight norm), found at {group.name!r}: leave it out (exclude=...), or train with DDP or in one process"
        )
    parameter: Tensor = parameter_of(group.tensors()[0])
    refuse_parameter(group.name, parameter)
    return parameter


class Swap:
    """Who holds what of a stack's weights, and the run of coordinates of all members that each rank walks.

    Attributes:
        process_group, rank, ranks: the mesh's ranks in ascending order, this one's index among them, their number.
        device: where they communicate; offloaded parameters come along.
        axes: of each weight, along which the runs are cut.
    """

    def __init__(self, term: AcrossTerm, cuts: Cuts, parameters: Sequence[Tensor]) -> None:
        mesh = _mesh(term, parameters)
        global_ranks = members(mesh)
        self.cuts = cuts
        self.process_group = mesh.get_group() if mesh.ndim == 1 else process_group_of(global_ranks)
        self.rank, self.ranks = global_ranks.index(mesh.get_rank()), len(global_ranks)
        self.device = device_of(mesh)
        self.shapes = [tuple(parameter.shape) for parameter in parameters]
        self.holdings = [
            holding(parameter) if isinstance(parameter, DTensor) else whole(parameter.shape, self.ranks)
            for parameter in parameters
        ]
        self.axes = [self._axis(term, index) for index in range(len(parameters))]
        for slot in cuts.slots:
            alike = {(self.axes[index], self.shapes[index]) for index, _ in slot}
            if len(alike) > 1:
                raise _not_side_by_side(
                    term, f"its members lie in tensors of the shapes {sorted(s for _, s in alike)}"
                )

    def run(self, index: int, rank: int) -> Run:
        """The run of a weight that a rank walks."""
        return chunk((0, self.shapes[index][self.axes[index]]), self.ranks, rank)

    def collect(self, local: Sequence[Tensor]) -> list[Tensor]:
        """This rank's run of each weight, from what the ranks hold; every rank has to call this."""
        outgoing: list[list[Tensor]] = [[] for _ in range(self.ranks)]
        incoming: list[list[Expected]] = [[] for _ in range(self.ranks)]
        arriving: list[list[tuple[int, Region]]] = [[] for _ in range(self.ranks)]
        for p, (held, tensor) in enumerate(zip(self.holdings, local, strict=True)):
            for k in range(self.ranks):
                if held.copy[k] != held.copy[self.rank]:
                    continue
                outgoing[k].append(_local_part(tensor, held.regions[self.rank], self.axes[p], self.run(p, k)))
                region = _within(held.regions[k], self.axes[p], self.run(p, self.rank))
                incoming[k].append(Expected(region.shape, tensor.dtype))
                arriving[k].append((p, region))
        arrived = exchange(self.process_group, outgoing, incoming, self.device).wait(self.rank)
        runs = [tensor.new_empty(self._run_shape(p), device=self.device) for p, tensor in enumerate(local)]
        for pieces, places in zip(arrived, arriving, strict=True):
            for piece, (p, region) in zip(pieces, places, strict=True):
                region.put(runs[p], piece)
        return runs

    def give_back(self, runs: Sequence[Tensor | None], local: Sequence[Tensor]) -> list[Tensor | None]:
        """Of the runs that the ranks have, what belongs to this rank's local tensors; every rank has to call this."""
        found = [None if run is None else torch.zeros_like(t) for run, t in zip(runs, local, strict=True)]
        outgoing: list[list[Tensor]] = [[] for _ in range(self.ranks)]
        incoming: list[list[Expected]] = [[] for _ in range(self.ranks)]
        arriving: list[list[Tensor]] = [[] for _ in range(self.ranks)]
        for p, (held, run, target) in enumerate(zip(self.holdings, runs, found, strict=True)):
            if run is None or target is None:
                continue
            for k in range(self.ranks):
                outgoing[k].append(_within(held.regions[k], self.axes[p], self.run(p, self.rank)).take(run))
                part = _local_part(target, held.regions[self.rank], self.axes[p], self.run(p, k))
                incoming[k].append(Expected(tuple(part.shape), part.dtype))
                arriving[k].append(part)
        arrived = exchange(self.process_group, outgoing, incoming, self.device).wait(self.rank)
        for pieces, parts in zip(arrived, arriving, strict=True):
            for piece, part in zip(pieces, parts, strict=True):
                part.copy_(piece)
        return found

    def places(self) -> list[list[Tensor]]:
        """Where the elements of this rank's runs lie in the whole weights."""
        return [places_in(shape, axis=self.axes[p], run=self.run(p, self.rank)) for p, shape in enumerate(self.shapes)]

    def _run_shape(self, index: int) -> list[int]:
        shape = list(self.shapes[index])
        shape[self.axes[index]] = self.run(index, self.rank)[1]
        return shape

    def _axis(self, term: AcrossTerm, index: int) -> int:
        """One along which the ranks have their runs already, if there is one, so that nothing travels."""
        layouts = [layout for slot in self.cuts.slots for which, layout in slot if which == index]
        shape, held = self.shapes[index], self.holdings[index]
        free = set.intersection(*(free_axes(layout, len(shape)) for layout in layouts))
        for axis in sorted(free):
            if _is_cut_along(held, axis):
                return axis
        if not free:
            raise _not_side_by_side(term, f"{self.cuts.groups[index].name!r} cannot be cut across all of its members")
        return max(sorted(free), key=lambda axis: shape[axis])


def _is_cut_along(held: Holding, axis: int) -> bool:
    ranks = len(held.regions)
    runs = [(0, size) for size in held.shape]
    for rank, region in enumerate(held.regions):
        runs[axis] = chunk((0, held.shape[axis]), ranks, rank)
        if region.runs != tuple((run,) for run in runs):
            return False
    return True


def _mesh(term: AcrossTerm, parameters: Sequence[Tensor]) -> DeviceMesh:
    meshes = list(dict.fromkeys(each.device_mesh for each in parameters if isinstance(each, DTensor)))
    if len(meshes) > 1 or meshes[0].get_coordinate() is None:
        raise _not_side_by_side(term, f"its parameters lie on {len(meshes)} device meshes ({meshes}), or on none here")
    return meshes[0]


def _not_side_by_side(term: AcrossTerm, why: str) -> MHEError:
    return MHEError(
        f"MHE does not support across={term.stack.kind!r} for {term.stack.name!r} as it is sharded: {why}; leave it "
        "out (exclude=...), or distribute all members alike"
    )


def _within(region: Region, axis: int, run: Run) -> Region:
    """What of a region lies within a run along an axis, in the places of a tensor that has the run alone."""
    start, length = run
    clipped = [(max(first, start), min(first + count, start + length)) for first, count in region.runs[axis]]
    inside = tuple((first - start, end - first) for first, end in clipped if end > first) or ((0, 0),)
    return Region((*region.runs[:axis], inside, *region.runs[axis + 1 :]))


def _local_part(local: Tensor, region: Region, axis: int, run: Run) -> Tensor:
    """A view of a local tensor, which has a region of the whole one: what of it lies within a run along an axis."""
    before = _within(region, axis, (0, run[0])).shape[axis]  # runs of a region ascend
    return local.narrow(axis, before, _within(region, axis, run).shape[axis])


class _Sharded(torch.autograd.Function):
    """The forward pass leaves the gradient ready, as with `sharded_penalty`; the backward pass is one scaling."""

    @staticmethod
    def forward(ctx: Any, swap: Swap, term: AcrossTerm, differentiable: bool, *local: Tensor) -> Tensor:
        ctx.wanted = [differentiable and need for need in ctx.needs_input_grad[3:]]
        energy, ctx.gradients = _run(swap, term, ctx.wanted, local)
        ctx.swap, ctx.term = swap, term
        ctx.save_for_backward(*local)
        wide = any(tensor.dtype == torch.float64 for tensor in local)
        return energy.to(local[0].device, torch.float64 if wide else torch.float32)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second pass through a retained graph
            _, gradients = _run(ctx.swap, ctx.term, ctx.wanted, ctx.saved_tensors)
        return None, None, None, *(None if g is None else g.mul_(upstream.to(g.device, g.dtype)) for g in gradients)


def _run(
    swap: Swap, term: AcrossTerm, wanted: Sequence[bool], local: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    with torch.no_grad(), torch.autocast(local[0].device.type, enabled=False):
        runs = swap.collect(local)
        grams = grams_of(swap.cuts, runs, term.potential)
        torch.distributed.all_reduce(grams, group=swap.process_group)
        slope = slope_of(grams, sizes_of(term.stack), term.potential)
        if not any(wanted):
            return slope.energy, [None] * len(local)
        places = swap.places() if slope.push is not None else []
        found = gradients_of(swap.cuts, runs, wanted, slope, term.potential, places)
        return slope.energy, swap.give_back(found, local)

"""The mean energies of stacks of members whose parameters this process holds whole."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_mhe.energy import Potential
from hf_mhe.energy.across import Place, Slope, add_gradient_, gram, places_in, slope_of
from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, Stack
from hf_mhe.neurons.elements import elements, has_view
from hf_mhe.neurons.layout import ROWS, Layout
from hf_mhe.training.engines.refuse import refuse_parameter
from hf_mhe.training.terms import AcrossTerm


class Cuts:
    """Which weights a stack is cut from, and how: for each matrix and member the weight's index and its layout.

    Args:
        stack: the members.

    Attributes:
        groups: one for each weight, by which it is read.
        slots: for each matrix, for each member, the index of the weight, and the layout that takes it out.
    """

    def __init__(self, stack: Stack) -> None:
        self.groups: list[NeuronGroup] = []
        self.is_made: list[bool] = []  # whether the weight is the group's own matrix, of a layout that has no view
        indices: dict[Hashable, int] = {}
        self.slots: list[list[tuple[int, Layout]]] = []
        for slot in range(len(stack.slots)):
            cuts = []
            for member in stack.members:
                group = member[slot]
                assert group.source is not None  # a group of a live model
                made = not has_view(group.layout)
                key: Hashable = group.name if made else (group.source.module_path, group.source.tensor_names)
                if key not in indices:
                    indices[key] = len(self.groups)
                    self.groups.append(group)
                    self.is_made.append(made)
                cuts.append((indices[key], ROWS if made else group.layout))
            self.slots.append(cuts)

    def weights(self) -> list[Tensor]:
        """The weights, differentiable.

        Raises:
            MHEError: as `NeuronGroup.matrix`.
        """
        for group in self.groups:
            for tensor in group.tensors():
                refuse_parameter(group.name, tensor)
        pairs = zip(self.groups, self.is_made, strict=True)
        return [group.matrix() if made else group.whole() for group, made in pairs]

    def members(self, slot: int, weights: Sequence[Tensor]) -> list[Tensor]:
        """Views of the members' elements of one matrix, in the weights or in parts of them."""
        return [elements(layout, weights[index]) for index, layout in self.slots[slot]]

    def targets(self, slot: int, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The same in the weights' gradients, of which some are not wanted."""
        pairs = [(gradients[index], layout) for index, layout in self.slots[slot]]
        return [None if gradient is None else elements(layout, gradient) for gradient, layout in pairs]

    def places(self, slot: int, places: Sequence[Sequence[Tensor]]) -> list[Place]:
        """Where the members' elements lie in their weights, of which `places` has what `places_in` gives."""
        found = []
        for number, (index, layout) in enumerate(self.slots[slot]):
            along = tuple(elements(layout, each) for each in places[index])
            found.append(Place(along, len(self.slots) * number + slot))
        return found


def grams_of(cuts: Cuts, weights: Sequence[Tensor], potential: Potential) -> Tensor:
    """`(m, k, k)` float64, of all elements of the weights or of parts of them."""
    found = [gram(cuts.members(slot, weights), potential) for slot in range(len(cuts.slots))]
    return torch.stack([each.to(found[0].device) for each in found])


def gradients_of(
    cuts: Cuts,
    weights: Sequence[Tensor],
    wanted: Sequence[bool],
    slope: Slope,
    potential: Potential,
    places: Sequence[Sequence[Tensor]],
) -> list[Tensor | None]:
    """The gradient of each weight, or of the part of it, where it is wanted."""
    pairs = zip(weights, wanted, strict=True)
    found = [torch.zeros_like(w, memory_format=torch.contiguous_format) if want else None for w, want in pairs]
    for slot in range(len(cuts.slots)):
        members = cuts.members(slot, weights)
        weighted = slope.weights[slot].to(members[0].device)
        push = None if slope.push is None else slope.push[slot].to(members[0].device)
        at = [] if push is None else cuts.places(slot, places)
        add_gradient_(cuts.targets(slot, found), members, weighted, push, at, potential)
    return found


def sizes_of(stack: Stack) -> list[int]:
    """The elements of each matrix of a member."""
    return [group.n * group.d for group in stack.members[0]]


@torch.compiler.disable  # blocks cut on the host, and gradients written where weights are: nothing for a graph
def energies_of_stacks(terms: Sequence[AcrossTerm]) -> Tensor:
    """The mean energies of stacks whose parameters this process holds whole, `(terms,)`, differentiable.

    Raises:
        MHEError: one is not finite, or a parameter is not whole, has no values or changed its shape.
    """
    found: list[Tensor] = []
    for term in terms:
        cuts = Cuts(term.stack)
        weights = cuts.weights()
        energy: Tensor = _Energy.apply(cuts, sizes_of(term.stack), term.potential, *weights)
        found.append(energy.to(found[0].device) if found else energy)
    dtype = torch.float64 if any(energy.dtype == torch.float64 for energy in found) else torch.float32
    energies = torch.stack([energy.to(dtype) for energy in found])
    check_finite_across(terms, energies.detach())
    return energies


def check_finite_across(terms: Sequence[AcrossTerm], energies: Tensor) -> None:
    """Refuse energies of stacks, `(terms,)`, that are not finite.

    Raises:
        MHEError: names the stack.
    """
    for term, energy in zip(terms, energies.tolist(), strict=True):
        if energy == energy and abs(energy) != float("inf"):
            continue
        why = "a weight in it is not finite" if energy != energy else "two of its members coincide"
        bound = "" if energy != energy else "; leave softening at its default, which bounds what such a pair counts"
        raise MHEError(f"the energy across {term.stack.kind} {term.stack.name!r} is {energy}: {why}{bound}")


class _Energy(torch.autograd.Function):
    """The backward pass writes the gradient where it goes, block by block; until then only (m, k, k) is kept."""

    @staticmethod
    def forward(ctx: Any, cuts: Cuts, sizes: Sequence[int], potential: Potential, *weights: Tensor) -> Tensor:
        # Autocast would run the products in half precision.
        with torch.autocast(weights[0].device.type, enabled=False):
            slope = slope_of(grams_of(cuts, weights, potential), sizes, potential)
        ctx.cuts, ctx.potential, ctx.slope = cuts, potential, slope
        ctx.save_for_backward(*weights)
        wide = any(weight.dtype == torch.float64 for weight in weights)
        return slope.energy.to(torch.float64 if wide else torch.float32)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.saved_tensors
        places = [places_in(weight.shape) for weight in weights] if ctx.slope.push is not None else []
        slope = ctx.slope.scaled(upstream.to(ctx.slope.energy))
        with torch.autocast(weights[0].device.type, enabled=False):
            found = gradients_of(ctx.cuts, weights, ctx.needs_input_grad[3:], slope, ctx.potential, places)
        return None, None, None, *found

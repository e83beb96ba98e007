"""DTensors: FSDP2, HSDP and tensor parallel, where the ranks of a mesh divide the weights among themselves."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_mhe.neurons import NeuronGroup
from hf_mhe.neurons.group import is_dtensor
from hf_mhe.training.engines.dtensor.assignment import Parameters, most_rows
from hf_mhe.training.engines.dtensor.fsdp2 import Managed
from hf_mhe.training.engines.dtensor.regions import holding
from hf_mhe.training.engines.dtensor.sharded_across import sharded_energy
from hf_mhe.training.engines.dtensor.sharded_penalty import sharded_penalty
from hf_mhe.training.engines.one_process import OneProcess, check_finite, weighted
from hf_mhe.training.engines.plan import GroupShape, Workload
from hf_mhe.training.engines.refuse import refuse_without_values
from hf_mhe.training.engines.stack_energies import check_finite_across, energies_of_stacks
from hf_mhe.training.terms import AcrossTerm, PenaltyTerms, Term


class DTensors(OneProcess):
    """Some parameters of the model are DTensors. Groups without one are computed by every rank, as by one process.

    Args:
        model: the user's own model, unwrapped.
    """

    divides_members = True

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def workload(self, groups: Sequence[NeuronGroup]) -> Workload:
        """See `Engine`."""
        all_parameters = self._parameters(groups)
        ranks = [t.device_mesh.size() if isinstance(t, DTensor) else 1 for each in all_parameters for t in each]
        return Workload(tuple(map(_shape, groups, all_parameters)), min(ranks))

    def evaluate(self, terms: Sequence[Term]) -> PenaltyTerms:
        """See `Engine`."""
        groups = [term.group for term in terms]
        refuse_without_values(groups)
        parameters = self._parameters(groups)
        sharded = [index for index, each in enumerate(parameters) if any(map(is_dtensor, each))]
        rest = [index for index in range(len(terms)) if index not in sharded]
        if not sharded:
            return super().evaluate(terms)
        sharded_terms = [terms[index] for index in sharded]
        penalty, found = sharded_penalty(sharded_terms, [parameters[index] for index in sharded])
        check_finite(sharded_terms, found)
        energies = found.new_zeros(len(terms))
        energies[sharded] = found
        if rest:
            own = super().evaluate([terms[index] for index in rest])
            energies[rest] = own.energies.to(energies)
            penalty = penalty + own.penalty.to(penalty.device)
        return PenaltyTerms(penalty, energies, groups)

    def evaluate_across(self, terms: Sequence[AcrossTerm], *, due: bool) -> PenaltyTerms:
        """See `Engine`; stacks without a DTensor are computed by every rank."""
        refuse_without_values([group for term in terms for group in term.stack.groups])
        managed = Managed(self._model)
        found: list[Tensor] = []
        for term in terms:
            tensors = [managed.parameter(tensor) for group in term.stack.groups for tensor in group.tensors()]
            sharded = any(map(is_dtensor, tensors))
            found.append(sharded_energy(term, managed.parameter) if sharded else energies_of_stacks([term])[0])
        dtype = functools.reduce(torch.promote_types, (energy.dtype for energy in found))
        energies = torch.stack([energy.to(found[0].device, dtype) for energy in found])
        check_finite_across(terms, energies.detach())
        return PenaltyTerms(weighted(terms, energies), energies.detach())

    def _parameters(self, groups: Sequence[NeuronGroup]) -> list[Parameters]:
        managed = Managed(self._model)  # made anew: between forward and backward pass FSDP2 exchanges parameters
        return [tuple(managed.parameter(tensor) for tensor in group.tensors()) for group in groups]


def _shape(group: NeuronGroup, parameters: Parameters) -> GroupShape:
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    if not sharded:
        return GroupShape(group.n, group.d)
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    rows = most_rows(group, holding(sharded[0])) if len(parameters) == 1 else None
    return GroupShape(group.n, group.d, rows=rows, size=size)

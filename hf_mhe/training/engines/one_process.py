"""One process: it holds whole parameters, and computes every term of the penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, WeightCache
from hf_mhe.training.accumulation import Moment, by_loop
from hf_mhe.training.engines.plan import GroupShape, Workload
from hf_mhe.training.engines.protocol import Stepper
from hf_mhe.training.engines.refuse import refuse_parameter, refuse_without_values
from hf_mhe.training.engines.stack_energies import energies_of_stacks
from hf_mhe.training.finite import finite
from hf_mhe.training.mean_energy import alike, mean_energies
from hf_mhe.training.messages import not_finite
from hf_mhe.training.terms import AcrossTerm, PenaltyTerms, Term


class OneProcess:
    """Parameters are whole here, and nobody else computes anything of the penalty."""

    stepper: Stepper | None = None
    fills_grad: bool = True
    divides_members: bool = False

    def micro_batch(self, *, sync: bool | None = None, scale: float | None = None) -> Moment:
        """See `Engine`."""
        return by_loop(sync=sync, scale=scale)

    def workload(self, groups: Sequence[NeuronGroup]) -> Workload:
        """See `Engine`."""
        return Workload(tuple(GroupShape(group.n, group.d) for group in groups))

    def evaluate(self, terms: Sequence[Term]) -> PenaltyTerms:
        """See `Engine`."""
        groups = [term.group for term in terms]
        refuse_without_values(groups)
        energies = energies_of_whole(terms)
        return PenaltyTerms(weighted(terms, energies), energies.detach(), groups)

    def evaluate_due(self, terms: Sequence[Term]) -> PenaltyTerms:
        """See `Engine`."""
        return self.evaluate(terms)

    def evaluate_across(self, terms: Sequence[AcrossTerm], *, due: bool) -> PenaltyTerms:
        """See `Engine`."""
        refuse_without_values([group for term in terms for group in term.stack.groups])
        energies = energies_of_stacks(terms)
        return PenaltyTerms(weighted(terms, energies), energies.detach())


def energies_of_whole(terms: Sequence[Term]) -> Tensor:
    """The objectives of terms whose parameters this process holds whole, `(terms,)`, differentiable.

    Raises:
        MHEError: one is not finite, or a parameter is not whole or changed its shape.
    """
    # Autocast would run the walk's products in half precision, where its own treatment of the hard pairs is lost.
    device = terms[0].group.tensors()[0].device
    cache = WeightCache(keep_all=True)
    with torch.autocast(device.type, enabled=False):
        matrices = [_matrix(term, cache) for term in terms]
        joined = torch.stack([energy.to(device) for energy in _walked(terms, matrices)])
    if torch.compiler.is_compiling():
        said = terms[0].objective  # the same of all terms, as `MHEConfig` has it
        return finite(joined, "\n".join(term.group.name for term in terms), said.noun, said.cure)
    check_finite(terms, joined.detach())
    return joined


def check_finite(terms: Sequence[Term], energies: Tensor) -> None:
    """Refuse energies of terms, `(terms,)`, that are not finite.

    Raises:
        MHEError: names the group.
    """
    if not torch.isfinite(energies).all():
        said = terms[0].objective
        raise MHEError(not_finite([term.group.name for term in terms], energies.tolist(), said.noun, said.cure))


def weighted(terms: Sequence[Term | AcrossTerm], energies: Tensor) -> Tensor:
    """`sum of factor * energy`, 0-dim, on the device of the energies."""
    factors = torch.tensor([term.factor for term in terms], dtype=energies.dtype)
    return (factors.to(energies.device) * energies).sum()


def _matrix(term: Term, cache: WeightCache) -> Tensor:
    group = term.group
    for tensor in group.tensors():
        refuse_parameter(group.name, tensor)
    return group.matrix(cache)


def _walked(terms: Sequence[Term], matrices: list[Tensor]) -> list[Tensor]:
    """The objectives of matrices, those of small ones of one shape in one call where they are exact energies."""
    potentials = [term.objective.by_rows for term in terms]
    found: dict[int, Tensor] = {}
    for indices in alike(matrices, potentials):
        potential = potentials[indices[0]]
        assert potential is not None  # or it would not be among them
        try:
            energies = mean_energies([matrices[index] for index in indices], potential)
        except MHEError:
            continue  # retried one by one, to name the culprit, or because one of them is a layer of zeros
        found.update(zip(indices, energies, strict=True))
    return [found[index] if index in found else _value(term, matrices[index]) for index, term in enumerate(terms)]


def _value(term: Term, matrix: Tensor) -> Tensor:
    try:
        return term.objective.value(matrix)
    except MHEError as error:
        raise MHEError(f"neuron group {term.group.name!r}: {error}") from error

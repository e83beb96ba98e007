"""One evaluation of the penalty, or of the part of it that is due, on whatever engine holds the parameters."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_mhe.energy import Potential
from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, WeightCache
from hf_mhe.neurons.group import is_dtensor
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.engines import (
    Managed,
    Part,
    Sharded,
    divide,
    divided_energies,
    owners,
    refuse_parameter,
    refuse_without_values,
    sharded_penalty,
    stop_together,
    tie,
)
from hf_mhe.training.engines.plan import operations
from hf_mhe.training.finite import finite
from hf_mhe.training.logs import PenaltyTerms
from hf_mhe.training.mean_energy import Sample, alike, mean_energies, mean_energy
from hf_mhe.training.messages import not_finite


class Term(NamedTuple):
    """A group, how often its mean energy counts in the penalty, and the sample it is estimated from, if it is."""

    group: NeuronGroup
    factor: float
    sample: Sample | None = None


class Evaluation:
    """Evaluates terms of the penalty of a model.

    Args:
        model: the user's own model, unwrapped.
        config: says which potential a group has.
    """

    def __init__(self, model: nn.Module, config: MHEConfig) -> None:
        self._model, self._config = model, config

    def whole(self, terms: list[Term], ranks: torch.distributed.ProcessGroup | None = None) -> PenaltyTerms:
        """The terms, by this rank alone or by all that hold a part of the parameters.

        Where DeepSpeed trains, `ranks` divide the work; under ZeRO 3 they do in any case.

        Raises:
            MHEError: a group's energy is not finite, a parameter is on the meta device or sharded in a way that is not
                supported, or it changed its shape.
        """
        groups = [term.group for term in terms]
        if not terms:
            return PenaltyTerms(torch.zeros(()), torch.zeros(0))
        ranks = owners(groups) or ranks
        if ranks is not None:
            energies = self._divided(terms, ranks)
            return PenaltyTerms(_weighted(terms, energies), energies.detach(), groups)
        refuse_without_values(groups)
        managed = Managed(self._model)
        parameters = [tuple(managed.parameter(tensor) for tensor in group.tensors()) for group in groups]
        sharded = [place for place, each in enumerate(parameters) if any(map(is_dtensor, each))]
        if not sharded:
            energies = self._energies(terms)
            return PenaltyTerms(_weighted(terms, energies), energies.detach(), groups)
        potentials = [self._config.potential(group.role) for group in groups]
        penalty, found = sharded_penalty(
            [Sharded(groups[place], parameters[place], potentials[place], *terms[place][1:]) for place in sharded]
        )
        self._check_finite([terms[place] for place in sharded], found)
        energies = found.new_zeros(len(terms))
        energies[sharded] = found
        rest = [place for place in range(len(terms)) if place not in sharded]
        if rest:
            own = self._energies([terms[place] for place in rest])
            energies[rest] = own.detach().to(energies)
            penalty = penalty + _weighted([terms[place] for place in rest], own).to(penalty.device)
        return PenaltyTerms(penalty, energies, groups)

    def part(self, terms: list[Term], part: Part) -> PenaltyTerms:
        """This rank's part of the terms, where gradients are averaged over the ranks.

        What it refuses is raised in the backward pass, on every rank.

        Raises:
            MHEError: as `whole`, where the part is everything.
        """
        if part.ranks == 1 or not terms:
            return self.whole(terms)
        owner = divide([operations(t.group.n, t.group.d, t.sample) for t in terms], part.ranks)
        mine = [place for place in range(len(terms)) if owner[place] == part.rank]
        tensors = [tensor for term in terms for tensor in term.group.tensors()]
        # The ranks' shares are put together: all of one dtype, whichever groups a rank has.
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
        energies = torch.zeros(len(terms), dtype=dtype, device=tensors[0].device)
        penalty, error = energies.new_zeros(()), None
        try:
            if mine:
                own = part.ranks * self._energies([terms[place] for place in mine]).to(dtype)
                penalty = _weighted([terms[place] for place in mine], own).to(penalty.device)
                energies[mine] = own.detach().to(energies.device)
        except MHEError as refused:
            error = refused
        trained = [tensor for tensor in tensors if tensor.requires_grad]
        tied = stop_together(tie(penalty, trained), trained[0], part, error)
        return PenaltyTerms(tied, energies, [term.group for term in terms], part.ranks)

    def _divided(self, terms: list[Term], ranks: torch.distributed.ProcessGroup) -> Tensor:
        """The mean energies of groups that DeepSpeed trains, whose neurons the ranks walk together."""
        device = terms[0].group.tensors()[0].device
        with torch.autocast(device.type, enabled=False):
            potentials = [(term.group, self._config.potential(term.group.role)) for term in terms]
            joined = torch.stack(divided_energies(self._model, potentials, ranks))
        self._check_finite(terms, joined.detach())
        return joined

    @property
    def _softening(self) -> str:
        return str(self._config.softening)

    def _energies(self, terms: list[Term]) -> Tensor:
        """The mean energies of groups whose parameters this process holds whole, differentiable."""
        # Autocast would run the walk's products in half precision, where its own treatment of the hard pairs is lost.
        device = terms[0].group.tensors()[0].device
        cache = WeightCache(keep_all=True)
        with torch.autocast(device.type, enabled=False):
            matrices = [self._matrix(term, cache) for term in terms]
            joined = torch.stack([energy.to(device) for energy in self._walked(terms, matrices)])
        if torch.compiler.is_compiling():
            return finite(joined, "\n".join(term.group.name for term in terms), self._softening)
        self._check_finite(terms, joined.detach())
        return joined

    def _matrix(self, term: Term, cache: WeightCache) -> Tensor:
        group = term.group
        for tensor in group.tensors():
            refuse_parameter(group.name, tensor)
        return group.matrix(cache)

    def _walked(self, terms: list[Term], matrices: list[Tensor]) -> list[Tensor]:
        """The mean energies of matrices, those of small ones of one shape in one call."""
        potentials = [self._config.potential(term.group.role) for term in terms]
        exact = [place for place, term in enumerate(terms) if term.sample is None]
        found: dict[int, Tensor] = {}
        for places in alike(exact, matrices, potentials):
            try:
                energies = mean_energies([matrices[place] for place in places], potentials[places[0]])
            except MHEError:
                continue  # retried one by one, to name the culprit, or because one of them is a layer of zeros
            found.update(zip(places, energies, strict=True))
        return [
            found[place] if place in found else self._energy(term, matrices[place], potentials[place])
            for place, term in enumerate(terms)
        ]

    def _energy(self, term: Term, matrix: Tensor, potential: Potential) -> Tensor:
        try:
            return mean_energy(matrix, potential, term.sample)
        except MHEError as error:
            raise MHEError(f"neuron group {term.group.name!r}: {error}") from error

    def _check_finite(self, terms: list[Term], energies: Tensor) -> None:
        if not torch.isfinite(energies).all():
            raise MHEError(not_finite([term.group.name for term in terms], energies.tolist(), self._softening))


def _weighted(terms: list[Term], energies: Tensor) -> Tensor:
    factors = torch.tensor([term.factor for term in terms], dtype=energies.dtype)
    return (factors.to(energies.device) * energies).sum()

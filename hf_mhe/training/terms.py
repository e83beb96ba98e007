"""A term of the penalty, and what an evaluation of the terms gives.

The penalty is `sum of factor * objective` over terms, one for each neuron group. The regularizer makes them, a budget
draws some of them, an engine evaluates them, and the log counts what came out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from hf_mhe.energy import Potential
from hf_mhe.neurons import NeuronGroup, Stack
from hf_mhe.training.engines.plan import operations
from hf_mhe.training.objectives.objective import Objective


class Term(NamedTuple):
    """A group, the number of its neurons that the penalty adds up, and the factor of that."""

    group: NeuronGroup
    factor: float
    objective: Objective

    @property
    def operations(self) -> int:
        """Floating-point operations of the objective with its gradient."""
        return self.objective.operations(self.group.n, self.group.d)


class AcrossTerm(NamedTuple):
    """A stack of members, the factor of its mean energy in the penalty, and the energy of one pair of them."""

    stack: Stack
    factor: float
    potential: Potential

    @property
    def operations(self) -> int:
        """Floating-point operations of the walks over the members, with the gradient."""
        return operations(self.stack.k, self.stack.size)


class PenaltyTerms(NamedTuple):
    """One evaluation of the penalty: the weighted sum, differentiable, and each group's objective, detached.

    `energies` are the mean energies, or the values of the objective in their place. With `ranks` above 1 the work was
    divided: the penalty and the energies are `ranks` times this rank's share, which is zero for the groups that others
    computed, and their mean over the ranks is what they would be undivided. Groups that no rank computed, because a
    budget left them out, are not `computed`; their energy is zero here.
    """

    penalty: Tensor
    energies: Tensor
    groups: Sequence[NeuronGroup] = ()
    ranks: int = 1
    computed: Sequence[int] | None = None  # indices of the groups; None: all of them

    def among(self, groups: Sequence[NeuronGroup]) -> PenaltyTerms:
        """The same terms among all groups, of which a budget may have left some out."""
        if len(groups) == len(self.groups):
            return self
        index = {group.name: number for number, group in enumerate(groups)}
        computed = [index[group.name] for group in self.groups]
        energies = self.energies.new_zeros(len(groups))
        energies[computed] = self.energies
        return PenaltyTerms(self.penalty, energies, groups, self.ranks, computed)


def trained(groups: Iterable[NeuronGroup]) -> list[Tensor]:
    """The tensors of groups that the optimizer may have."""
    return [tensor for group in groups if group.requires_grad for tensor in group.tensors() if tensor.requires_grad]

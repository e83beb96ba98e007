"""The terms of the penalty that a config asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.objectives.energy import Energy
from hf_mhe.training.objectives.family import FamilyObjective
from hf_mhe.training.objectives.family_members import MEMBERS
from hf_mhe.training.terms import Term


def exact_terms(config: MHEConfig, groups: Sequence[NeuronGroup], step: int, seed: int) -> list[Term]:
    """One term for each group, at an optimizer step of a training with a seed."""
    if config.objective == "energy":
        return [Term(group, config.weight(group.role), Energy(config.potential(group.role))) for group in groups]
    options = tuple(config.options.items())
    draws = MEMBERS[config.objective].draws
    return [
        Term(
            group,
            config.weight(group.role),
            FamilyObjective(
                config.objective,
                config.potential(group.role),
                options,
                f"{seed}/{step}/{group.name}" if draws else "",
            ),
        )
        for group in groups
    ]


def energy_terms(config: MHEConfig, groups: Sequence[NeuronGroup]) -> list[Term]:
    """The groups' mean energies, whatever the objective is."""
    return [Term(group, 1.0, Energy(config.potential(group.role))) for group in groups]


def inflation(config: MHEConfig, groups: Sequence[NeuronGroup], terms: Sequence[Term]) -> float:
    """The norm of a drawn penalty's gradient over that of the exact one's, if all groups' are alike."""
    exact = math.hypot(*(config.weight(group.role) for group in groups))
    return math.hypot(*(term.factor for term in terms)) / exact

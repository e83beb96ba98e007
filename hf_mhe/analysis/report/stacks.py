"""`StackEnergy`: the experts of a layer, or the heads of a projection, in one row."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.summary import mean_score, redundancy, scores


@dataclass(frozen=True)
class StackEnergy:
    """The groups of one stack together: means over the groups, extremes and counts over all of them.

    Each group counts once in a mean. Neurons of different groups are not compared with each other: two experts see
    different tokens, two heads attend apart.
    """

    name: str
    """Dotted name with `*` for the number of the expert or head: a pattern that includes just these groups."""
    kind: str
    role: str
    groups: int
    """Experts, heads or groups of a convolution in the stack; 1 for a group that stands alone."""
    neurons: int
    """Neurons with a direction, of all groups."""
    d: int
    """Dimension of a neuron."""
    energy: float
    """Mean of the groups' energies; NaN where none has one."""
    expected: float
    """Mean of what is expected of the groups; inf where it diverges."""
    score: float | None
    """Mean of the groups' scores; None where none has one."""
    highest_score: float | None
    most_redundant: str
    """Name of the group with the highest score."""
    lowest_score: float | None
    max_cosine: float
    """Largest cosine of two neurons of one group."""
    near_duplicates: int
    coincident: int
    dead: int


STACK_COLUMNS = tuple(field.name for field in fields(StackEnergy))


def stacked(groups: Iterable[GroupEnergy]) -> list[StackEnergy]:
    """All groups with each stack as one row, highest mean score first; a group that stands alone is a stack of one.

    `groups` are sorted by `redundancy`.
    """
    by_name: dict[str, list[GroupEnergy]] = {}
    for group in groups:
        by_name.setdefault(group.stack or group.name, []).append(group)
    rows = [_together(name, members) for name, members in by_name.items()]
    return sorted(rows, key=redundancy)


def _together(name: str, groups: list[GroupEnergy]) -> StackEnergy:
    first = groups[0]
    energies = [group.energy for group in groups if not math.isnan(group.energy)]
    scored = scores(groups)
    return StackEnergy(
        name=name,
        kind=first.kind,
        role=first.role,
        groups=len(groups),
        neurons=sum(group.n for group in groups),
        d=first.d,
        energy=math.fsum(energies) / len(energies) if energies else math.nan,
        expected=sum(group.expected for group in groups) / len(groups),
        score=mean_score(groups),
        highest_score=max(scored, default=None),
        most_redundant=first.name,
        lowest_score=min(scored, default=None),
        max_cosine=max(group.max_cosine for group in groups),
        near_duplicates=sum(group.near_duplicates for group in groups),
        coincident=sum(group.coincident for group in groups),
        dead=sum(group.dead for group in groups),
    )

"""`StackEnergy`: the experts of a layer, or the heads of a projection, in one row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hf_mhe.analysis.report.columns import Shown, column
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.summary import crowding, mean_score, mean_spread, scores, spreads


@dataclass(frozen=True)
class StackEnergy:
    """The groups of one stack together: means over the groups, extremes and counts over all of them.

    Each group counts once in a mean. Neurons of different groups are not compared with each other: two experts see
    different tokens, two heads attend apart.
    """

    name: str = column(Shown.TABLES, label="stack", short="layer", is_name=True)
    """Dotted name with `*` for the number of the expert or head: a pattern that includes just these groups."""
    kind: str = column(Shown.CSV, is_text=True)
    role: str = column(Shown.TABLES, is_text=True)
    groups: int = column(Shown.TABLES, help="experts, heads, or groups of a convolution")
    """Experts, heads or groups of a convolution in the stack; 1 for a group that stands alone."""
    neurons: int = column(Shown.TABLES, help="neurons with a direction, of all groups")
    """Neurons with a direction, of all groups."""
    d: int = column(Shown.TABLES, help="dimension of a neuron")
    """Dimension of a neuron."""
    spread: float | None = column(
        Shown.TABLES, label="mean spread", short="spread", digits=3, help="1 random draw, below 1 crowded"
    )
    """Harmonic mean of the groups' spreads; None where none has one."""
    lowest_spread: float | None = column(
        Shown.TABLES, label="lowest spread", short="lowest", digits=3, help="lowest spread of a group"
    )
    most_crowded: str = column(Shown.CSV | Shown.PAGE, is_name=True)
    """Name of the group with the lowest spread."""
    verdict: str | None = column(Shown.TABLES, is_text=True, help="what crowds the neurons of most of the groups")
    """The commonest verdict of the groups."""
    energy: float = column(
        Shown.CSV | Shown.PAGE, label="mean energy", short="energy", digits=6, help="mean of the groups' energies"
    )
    """Mean of the groups' energies; NaN where none has one."""
    expected: float = column(Shown.CSV, digits=6)
    """Mean of what is expected of the groups; inf where it diverges."""
    score: float | None = column(
        Shown.TABLES, label="mean score", short="score", digits=3, help="0 optimum, 1 random draw, above 1 redundant"
    )
    """Mean of the groups' scores; None where none has one."""
    highest_score: float | None = column(
        Shown.CSV | Shown.PAGE, label="highest score", digits=3, help="highest score of a group"
    )
    most_redundant: str = column(Shown.CSV | Shown.PAGE, is_name=True)
    """Name of the group with the highest score."""
    lowest_score: float | None = column(
        Shown.CSV | Shown.PAGE, label="lowest score", digits=3, help="lowest score of a group"
    )
    max_cosine: float = column(
        Shown.TABLES, label="largest cosine", short="max cos", digits=3, help="of two neurons of one group"
    )
    """Largest cosine of two neurons of one group."""
    near_duplicates: int = column(Shown.TABLES, label="near-duplicates", short="near-dup", help="pairs")
    coincident: int = column(Shown.CSV, help="pairs that point exactly the same way")
    dead: int = column(Shown.TABLES, help="rows of zeros")
    apart: str | None = column(Shown.CSV, is_text=True)
    """Why the neurons do not compete; None: they do."""


def stacked(groups: Iterable[GroupEnergy]) -> list[StackEnergy]:
    """All groups with each stack as one row, most crowded first; a group that stands alone is a stack of one."""
    by_name: dict[str, list[GroupEnergy]] = {}
    for group in groups:
        by_name.setdefault(group.stack or group.name, []).append(group)
    rows = [_stack_of(name, members) for name, members in by_name.items()]
    return sorted(rows, key=crowding)


def _stack_of(name: str, groups: list[GroupEnergy]) -> StackEnergy:
    first = min(groups, key=crowding)
    energies = [group.energy for group in groups if not math.isnan(group.energy)]
    scored = scores(groups)
    return StackEnergy(
        name=name,
        kind=first.kind,
        role=first.role,
        groups=len(groups),
        neurons=sum(group.n for group in groups),
        d=first.d,
        spread=mean_spread(groups),
        lowest_spread=min(spreads(groups), default=None),
        most_crowded=first.name,
        verdict=_commonest([group.verdict for group in groups if group.verdict is not None]),
        energy=math.fsum(energies) / len(energies) if energies else math.nan,
        expected=sum(group.expected for group in groups) / len(groups),
        score=mean_score(groups),
        highest_score=max(scored, default=None),
        most_redundant=max(groups, key=lambda group: -math.inf if group.score is None else group.score).name,
        lowest_score=min(scored, default=None),
        max_cosine=max(group.max_cosine for group in groups),
        near_duplicates=sum(group.near_duplicates for group in groups),
        coincident=sum(group.coincident for group in groups),
        dead=sum(group.dead for group in groups),
        apart=first.apart,
    )


def _commonest(verdicts: list[str]) -> str | None:
    """The verdict that most of the groups have, the first of them by the alphabet; None where there is none."""
    counts = Counter(verdicts)
    return min(counts, key=lambda verdict: (-counts[verdict], verdict), default=None)

"""A report in a few numbers, and the order of its rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from hf_mhe.analysis.report.columns import Shown, column
from hf_mhe.analysis.report.group_energy import GroupEnergy


@dataclass(frozen=True)
class RoleSummary:
    """The groups of one role together, as in `ReportSummary`."""

    groups: int
    neurons: int
    mean_spread: float | None
    mean_score: float | None


@dataclass(frozen=True)
class ReportSummary:
    """A report in a few numbers, over the groups whose neurons compete; the others are in `apart`."""

    groups: int
    neurons: int
    """Over all groups, dead ones left out."""
    parameters: int
    """Weights that the neurons are made of."""
    mean_spread: float | None = column(Shown.COMPARED, digits=3)
    """Harmonic mean of the groups' spreads: crowding, 1 / spread, is what adds up. Each layer counts once, however
    wide. None where no group has a spread, as in a report from before there was one."""
    median_spread: float | None = column(Shown.NOWHERE, digits=3)
    most_crowded: str | None = column(Shown.COMPARED, is_name=True)
    """Name of the group with the lowest spread."""
    lowest_spread: float | None = column(Shown.COMPARED, digits=3)
    mean_score: float | None = column(Shown.COMPARED, digits=3)
    """Plain mean over the groups that have a score: each layer counts once, however wide. None where none has."""
    median_score: float | None = column(Shown.NOWHERE, digits=3)
    most_redundant: str | None = column(Shown.COMPARED, is_name=True)
    """Name of the group with the highest score."""
    most_redundant_score: float | None = column(Shown.COMPARED, digits=3)
    max_cosine: float = column(Shown.COMPARED, digits=3)
    near_duplicates: int = column(Shown.COMPARED)
    coincident: int = column(Shown.COMPARED)
    dead: int = column(Shown.COMPARED)
    skipped: int = column(Shown.NOWHERE)
    apart: int = column(Shown.NOWHERE)
    """Groups whose neurons do not compete, measured and left out of the other numbers."""
    by_role: dict[str, RoleSummary] = column(Shown.NOWHERE)


def summarize(groups: list[GroupEnergy], skipped: int) -> ReportSummary:
    """The summary of groups; `skipped` is how many parameters are in none."""
    everything = len(groups)
    groups = sorted(competing(groups), key=crowding)
    scored = sorted((group for group in groups if group.score is not None), key=lambda group: -(group.score or 0.0))
    measured = spreads(groups)
    roles = sorted({group.role for group in groups})
    return ReportSummary(
        groups=len(groups),
        neurons=sum(group.n for group in groups),
        parameters=sum((group.n + group.dead) * group.d for group in groups),
        mean_spread=mean_spread(groups),
        median_spread=statistics.median(measured) if measured else None,
        most_crowded=groups[0].name if measured else None,
        lowest_spread=min(measured, default=None),
        mean_score=mean_score(groups),
        median_score=statistics.median(scores(groups)) if scored else None,
        most_redundant=scored[0].name if scored else None,
        most_redundant_score=scored[0].score if scored else None,
        max_cosine=max((group.max_cosine for group in groups), default=math.nan),
        near_duplicates=sum(group.near_duplicates for group in groups),
        coincident=sum(group.coincident for group in groups),
        dead=sum(group.dead for group in groups),
        skipped=skipped,
        apart=everything - len(groups),
        by_role={role: _role_summary([g for g in groups if g.role == role]) for role in roles},
    )


class Ranked(Protocol):
    """A row of a table: of one group, or of a stack of them."""

    @property
    def name(self) -> str: ...

    @property
    def spread(self) -> float | None: ...

    @property
    def score(self) -> float | None: ...

    @property
    def apart(self) -> str | None: ...


_Row = TypeVar("_Row", bound=Ranked)


def crowding(row: Ranked) -> tuple[bool, bool, float, bool, float, str]:
    """Sort key: lowest spread first, then by score where a report has no spreads, ties by name.

    Rows whose neurons do not compete come last.
    """
    spread = math.inf if row.spread is None else row.spread
    return (row.apart is not None, row.spread is None, spread, row.score is None, -(row.score or 0.0), row.name)


def competing(rows: Iterable[_Row]) -> list[_Row]:
    """The rows whose neurons compete: those that are ranked, summed up and checked."""
    return [row for row in rows if row.apart is None]


def spreads(rows: Iterable[Ranked]) -> list[float]:
    """The spreads of the rows that have one."""
    return [row.spread for row in rows if row.spread is not None]


def scores(rows: Iterable[Ranked]) -> list[float]:
    """The scores of the rows that have one."""
    return [row.score for row in rows if row.score is not None]


def mean_spread(rows: Iterable[Ranked]) -> float | None:
    """Harmonic mean of the spreads, None where there are none; orthogonal neurons, of infinite spread, crowd by 0."""
    found = spreads(rows)
    if not found:
        return None
    crowded = math.fsum(1 / spread for spread in found)
    return len(found) / crowded if crowded > 0 else math.inf


def mean_score(rows: Iterable[Ranked]) -> float | None:
    """Plain mean of the scores, None where there are none."""
    found = scores(rows)
    return math.fsum(found) / len(found) if found else None


def _role_summary(groups: list[GroupEnergy]) -> RoleSummary:
    return RoleSummary(len(groups), sum(group.n for group in groups), mean_spread(groups), mean_score(groups))

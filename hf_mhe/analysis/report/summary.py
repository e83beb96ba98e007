"""A report in a few numbers, and the order of its rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol

from hf_mhe.analysis.report.columns import Shown, column
from hf_mhe.analysis.report.group_energy import GroupEnergy


@dataclass(frozen=True)
class RoleSummary:
    """The groups of one role together."""

    groups: int
    neurons: int
    mean_score: float | None


@dataclass(frozen=True)
class ReportSummary:
    """A report in a few numbers."""

    groups: int
    neurons: int
    """Over all groups, dead ones left out."""
    parameters: int
    """Weights that the neurons are made of."""
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
    by_role: dict[str, RoleSummary] = column(Shown.NOWHERE)


def summarize(groups: list[GroupEnergy], skipped: int) -> ReportSummary:
    """The summary of groups that are sorted by `redundancy`; `skipped` is how many parameters are in none."""
    scored = [group for group in groups if group.score is not None]
    roles = sorted({group.role for group in groups})
    return ReportSummary(
        groups=len(groups),
        neurons=sum(group.n for group in groups),
        parameters=sum((group.n + group.dead) * group.d for group in groups),
        mean_score=mean_score(groups),
        median_score=statistics.median(scores(groups)) if scored else None,
        most_redundant=scored[0].name if scored else None,
        most_redundant_score=scored[0].score if scored else None,
        max_cosine=max((group.max_cosine for group in groups), default=math.nan),
        near_duplicates=sum(group.near_duplicates for group in groups),
        coincident=sum(group.coincident for group in groups),
        dead=sum(group.dead for group in groups),
        skipped=skipped,
        by_role={role: _role_summary([g for g in groups if g.role == role]) for role in roles},
    )


class Scored(Protocol):
    """A row of a table: of one group, or of a stack of them."""

    @property
    def name(self) -> str: ...

    @property
    def score(self) -> float | None: ...


def redundancy(group: Scored) -> tuple[bool, float, str]:
    """Sort key: highest score first, groups without one last, ties by name."""
    return (group.score is None, -(group.score or 0.0), group.name)


def scores(groups: Iterable[Scored]) -> list[float]:
    """The scores of the groups that have one."""
    return [group.score for group in groups if group.score is not None]


def mean_score(groups: Iterable[Scored]) -> float | None:
    """Plain mean of the scores, None where there are none."""
    found = scores(groups)
    return math.fsum(found) / len(found) if found else None


def _role_summary(groups: list[GroupEnergy]) -> RoleSummary:
    return RoleSummary(len(groups), sum(group.n for group in groups), mean_score(groups))


def plain_dict(row: Any) -> dict[str, Any]:
    """A dataclass of numbers as JSON types: undefined numbers are None."""
    content: dict[str, Any] = {}
    for item in fields(row):
        value = getattr(row, item.name)
        if isinstance(value, dict):
            value = {key: plain_dict(entry) for key, entry in value.items()}
        content[item.name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return content

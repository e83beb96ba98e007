"""`Comparison`: two reports, before and after, matched group by group."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mhe.analysis.report.columns import Shown, columns
from hf_mhe.analysis.report.files import write_atomic, write_json
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.json_values import to_json
from hf_mhe.analysis.report.matching import match_groups
from hf_mhe.analysis.report.report import EnergyReport
from hf_mhe.analysis.report.summary import ReportSummary, summarize
from hf_mhe.errors import MHEError
from hf_mhe.text import listed

if TYPE_CHECKING:
    import pandas

FORMAT = "hf_mhe.comparison"
FORMAT_VERSION = 1
# A relative change of spread smaller than this is rounding of float32 weights and walks, not a change of the layer;
# so is a change of score, of reports from before there were spreads.
UNCHANGED = 1e-6

_OF_A_SIDE = ("name", "n", "d")  # which may differ: a model inside another, a vocabulary that has grown
_COMPARED = tuple(each.key for each in columns(GroupEnergy, Shown.COMPARED))
_SUMMARY_KEYS = tuple(each.key for each in columns(ReportSummary, Shown.COMPARED))


@dataclass(frozen=True)
class ComparisonRow:
    """One group, before and after; name, kind, role and shape are those after."""

    before: GroupEnergy
    after: GroupEnergy

    @property
    def name(self) -> str:
        return self.after.name

    @property
    def name_before(self) -> str:
        return self.before.name

    @property
    def kind(self) -> str:
        return self.after.kind

    @property
    def role(self) -> str:
        return self.after.role

    @property
    def n(self) -> int:
        return self.after.n

    @property
    def d(self) -> int:
        return self.after.d

    @property
    def spread_change(self) -> float | None:
        """Spread after minus spread before: above 0 is better; None where one of the two has none, or neither ends."""
        return _change(self.before.spread, self.after.spread)

    @property
    def score_before(self) -> float | None:
        return self.before.score

    @property
    def score_after(self) -> float | None:
        return self.after.score

    @property
    def score_change(self) -> float | None:
        """Score after minus score before: below 0 is better; None where one of the two has no score."""
        return _change(self.before.score, self.after.score)

    @property
    def energy_before(self) -> float:
        return self.before.energy

    @property
    def energy_after(self) -> float:
        return self.after.energy

    @property
    def verdict(self) -> str:
        """ "improved", "worsened" or "unchanged" by the spread; by the score where a report has no spreads, and "not
        scored" where it has no score either.
        """
        before, after = self.before.spread, self.after.spread
        if before is not None and after is not None:
            crowding = 1 / before - 1 / after  # which is 0 of orthogonal neurons, whose spread is infinite
            if abs(crowding) <= UNCHANGED * max(1 / before, 1 / after):
                return "unchanged"
            return "improved" if crowding > 0 else "worsened"
        change = self.score_change
        if change is None:
            return "not scored"
        if abs(change) <= UNCHANGED:
            return "unchanged"
        return "improved" if change < 0 else "worsened"


@dataclass(frozen=True)
class ComparisonSummary:
    """A comparison in a few numbers, all over the groups that both reports have.

    The numbers of a side are `summary.before.mean_score` and the like; those that its JSON has are also attributes
    with the side behind them, `summary.mean_score_before`.
    """

    before: ReportSummary
    after: ReportSummary
    improved: int
    worsened: int
    unchanged: int

    @property
    def groups(self) -> int:
        """Groups that both reports have."""
        return self.after.groups

    @property
    def mean_spread_change(self) -> float | None:
        """Mean spread after minus before: above 0 is better; None where one side has none."""
        return _change(self.before.mean_spread, self.after.mean_spread)

    @property
    def mean_score_change(self) -> float | None:
        """Mean score after minus before: below 0 is better; None where one side has no score."""
        return _change(self.before.mean_score, self.after.mean_score)

    def __getattr__(self, name: str) -> Any:
        key, _, side = name.rpartition("_")
        if side in ("before", "after") and key in _SUMMARY_KEYS:
            return getattr(getattr(self, side), key)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON types; an infinite or undefined number is None."""
        content: dict[str, Any] = {
            "groups": self.groups,
            "mean_spread_change": self.mean_spread_change,
            "mean_score_change": self.mean_score_change,
        }
        for key in _SUMMARY_KEYS:
            content |= {f"{key}_before": getattr(self.before, key), f"{key}_after": getattr(self.after, key)}
        content |= {"improved": self.improved, "worsened": self.worsened, "unchanged": self.unchanged}
        json_types: dict[str, Any] = to_json(content)
        return json_types


@dataclass(frozen=True)
class Comparison:
    """Two energy reports of the same architecture; rows in the order of `after`: most crowded first."""

    before: EnergyReport
    after: EnergyReport
    rows: list[ComparisonRow]
    only_before: list[str]
    """Groups that `after` does not have."""
    only_after: list[str]
    """Groups that `before` does not have."""
    notes: tuple[str, ...] = ()
    """What a reader must know of how the groups were matched."""

    @classmethod
    def of(cls, before: EnergyReport, after: EnergyReport) -> Comparison:
        """Match the groups of two reports by name, also where one model stands inside the other.

        A bare model is matched with the same model under a head (`encoder.layer.0...` with `bert.encoder.layer.0...`),
        inside a pipeline or another module, and behind what wrappers put in front of its names.

        Raises:
            MHEError: the reports are of different potentials, have no group in common, or one model stands in several
                places inside the other and nothing says which is meant.
        """
        if (before.s, before.distance, before.space) != (after.s, after.distance, after.space):
            raise MHEError(
                f"energies of different potentials cannot be compared: before is {before.potential.describe()}, "
                f"after is {after.potential.describe()}; analyze both with the same s, distance and space"
            )
        earlier = {group.name: group for group in before.groups}
        matching = match_groups(before.groups, after.groups)
        pairs = matching.pairs
        rows = [ComparisonRow(earlier[pairs[group.name]], group) for group in after.groups if group.name in pairs]
        only_before = sorted(set(earlier) - set(pairs.values()))
        only_after = sorted({group.name for group in after.groups} - set(pairs))
        if not rows:
            raise MHEError(
                f"the two reports have no group in common: before has {listed(only_before, 3) or 'none'}, "
                f"after has {listed(only_after, 3) or 'none'}"
            )
        return cls(before, after, rows, only_before, only_after, (*matching.notes, *_other_threshold(before, after)))

    @cached_property
    def summary(self) -> ComparisonSummary:
        """The comparison in a few numbers."""
        verdicts = [row.verdict for row in self.rows if row.after.apart is None]
        return ComparisonSummary(
            before=summarize([row.before for row in self.rows], len(self.before.skipped)),
            after=summarize([row.after for row in self.rows], len(self.after.skipped)),
            improved=verdicts.count("improved"),
            worsened=verdicts.count("worsened"),
            unchanged=verdicts.count("unchanged"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON types; an infinite or undefined number is None."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "before": {"source": self.before.source, "revision": self.before.revision},
            "after": {"source": self.after.source, "revision": self.after.revision},
            "potential": {"s": self.after.s, "distance": self.after.distance, "space": self.after.space},
            "notes": list(self.notes),
            "summary": self.summary.to_dict(),
            "rows": [_row_dict(row) for row in self.rows],
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the comparison as JSON, whole or not at all.

        Raises:
            MHEError: the file cannot be written.
        """
        return write_json(path, self.to_dict())

    def to_pandas(self) -> pandas.DataFrame:
        """One row per group: name and shape after, score change, name and shape before, and each number of both."""
        import pandas

        rows = []
        for row in self.rows:
            values: dict[str, Any] = {key: getattr(row, key) for key in ("name", "kind", "role", "n", "d", "verdict")}
            values["spread_change"], values["score_change"] = row.spread_change, row.score_change
            values |= {f"{key}_before": getattr(row.before, key) for key in _OF_A_SIDE}
            for key in _COMPARED:
                values[f"{key}_before"] = getattr(row.before, key)
                values[f"{key}_after"] = getattr(row.after, key)
            rows.append(values)
        return pandas.DataFrame(rows)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The table as CSV, with all digits; also written to `path` where one is given.

        Raises:
            MHEError: the file cannot be written.
        """
        text = str(self.to_pandas().to_csv(index=False, lineterminator="\n"))
        if path is not None:
            write_atomic(path, text)
        return text

    def to_html(
        self, path: str | os.PathLike[str] | None = None, *, facts: Mapping[str, tuple[str, str]] | None = None
    ) -> str:
        """One self-contained HTML page; also written to `path` where one is given.

        `facts` lead the summary, such as the accuracies: label → (value, one more line).

        Raises:
            MHEError: the file cannot be written.
        """
        from hf_mhe.analysis.page.pages import comparison_page

        page = comparison_page(self, facts)
        if path is not None:
            write_atomic(path, page)
        return page

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw every group's spread before and after; the suffix of `path` chooses the format (.png, .svg, .pdf).

        Raises:
            MHEError: an unknown suffix, a file that cannot be written, no matplotlib (the extra `plots`).
        """
        from hf_mhe.analysis.page.plots import comparison_figure, save_figure

        return save_figure(comparison_figure(self), path)


def _change(before: float | None, after: float | None) -> float | None:
    """After minus before; None where one is missing, or both are infinite."""
    if before is None or after is None or (math.isinf(before) and math.isinf(after)):
        return None
    return after - before


def _other_threshold(before: EnergyReport, after: EnergyReport) -> list[str]:
    """A remark where the two counts of near-duplicates are not of the same thing."""
    sides = before.duplicate_cosine, after.duplicate_cosine
    if sides[0] == sides[1]:
        return []
    return [f"near-duplicates are counted from a cosine of {sides[0]:g} before, {sides[1]:g} after"]


def _row_dict(row: ComparisonRow) -> dict[str, Any]:
    before, after = row.before.to_dict(), row.after.to_dict()
    content: dict[str, Any] = {key: after[key] for key in ("name", "kind", "role", "n", "d")}
    content |= {"spread_change": row.spread_change, "score_change": row.score_change, "verdict": row.verdict}
    content["before"] = {key: before.get(key) for key in (*_OF_A_SIDE, *_COMPARED)}
    content["after"] = {key: after.get(key) for key in (*_OF_A_SIDE, *_COMPARED)}
    json_types: dict[str, Any] = to_json(content)
    return json_types

"""`EnergyReport`: the rows of one analysis, most crowded first, with what they were computed from and by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mhe.analysis.report.columns import Shown, columns
from hf_mhe.analysis.report.files import write_atomic, write_json
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.json_values import to_json
from hf_mhe.analysis.report.stacks import StackEnergy, stacked
from hf_mhe.analysis.report.summary import ReportSummary, competing, crowding, summarize
from hf_mhe.errors import MHEError
from hf_mhe.json_files import read_json_object
from hf_mhe.text import number

if TYPE_CHECKING:
    import pandas

    from hf_mhe.energy import Potential

FORMAT = "hf_mhe.energy_report"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class EnergyReport:
    """The energies of all neuron groups of one model, most crowded first; those whose neurons do not compete last.

    Nothing in it depends on the time or the place: a second analysis of the same weights gives the same file.
    """

    groups: list[GroupEnergy]
    skipped: dict[str, str]
    """Parameters of two or more dimensions that are in no group, each with the reason."""
    source: str
    """The path, repo id or class of the model, as it was given."""
    revision: str | None = None
    """Commit hash of a Hub repository."""
    s: float = 2.0
    distance: str = "euclidean"
    space: str = "full"
    duplicate_cosine: float = 0.95
    hf_mhe_version: str = ""
    torch_version: str = ""
    notes: tuple[str, ...] = field(default=())
    """What a reader must know of how the groups were found."""
    unseen: float | None = 0.0
    """Share of the model's weights that could not be measured, though asked for; None where a part of unknown size
    could not be read. Biases, positions and what patterns leave out do not count. `notes` says so above 5%."""
    left_out: int = 0
    """How many groups of neurons the include and exclude patterns kept out."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", sorted(self.groups, key=crowding))

    def __repr__(self) -> str:
        summary = self.summary
        mean = f"mean spread {number(summary.mean_spread, 3)}, mean score {number(summary.mean_score, 3)}"
        return f"<{type(self).__name__} of {self.source!r}: {len(self.groups)} groups, {mean}>"

    @property
    def potential(self) -> Potential:
        """The potential that the energies are of."""
        from hf_mhe.energy import Potential

        return Potential(self.s, self.distance, self.space)  # type: ignore[arg-type]

    @cached_property
    def summary(self) -> ReportSummary:
        """The report in a few numbers."""
        return summarize(self.groups, len(self.skipped))

    @property
    def competing(self) -> list[GroupEnergy]:
        """The groups whose neurons compete, most crowded first: what is summed up, ranked and checked."""
        return competing(self.groups)

    @property
    def apart(self) -> list[GroupEnergy]:
        """The groups whose neurons do not compete, such as depthwise kernels; `GroupEnergy.apart` says why."""
        return [group for group in self.groups if group.apart is not None]

    @cached_property
    def stacks(self) -> list[StackEnergy]:
        """The experts of a layer and the heads of a projection, each stack of them in one row, most crowded first.

        Their groups stand in `groups` too, one by one; `GroupEnergy.stack` says which stack a group is of.
        """
        return [stack for stack in self.aggregated if stack.groups > 1]

    @cached_property
    def aggregated(self) -> list[StackEnergy]:
        """Every matrix of the model as one row: `stacks`, and each other group as a stack of one."""
        return stacked(self.groups)

    def __getitem__(self, name: str) -> GroupEnergy:
        """The row of one group, by its dotted name.

        Raises:
            KeyError: no group of that name.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types; None is an expectation that diverges, or a number that is not defined."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "source": self.source,
            "revision": self.revision,
            "potential": {"s": self.s, "distance": self.distance, "space": self.space},
            "duplicate_cosine": self.duplicate_cosine,
            "hf_mhe_version": self.hf_mhe_version,
            "torch_version": self.torch_version,
            "notes": list(self.notes),
            "unseen": self.unseen,
            "left_out": self.left_out,
            "summary": to_json(self.summary),
            "stacks": [to_json(stack) for stack in self.stacks],
            "groups": [group.to_dict() for group in self.groups],
            "skipped": dict(sorted(self.skipped.items())),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EnergyReport:
        """The report of which `to_dict` made `content`; the summary and the stacks are computed anew.

        Raises:
            MHEError: not an energy report, one of a newer format, or one with a part missing or of a wrong type.
        """
        if content.get("format") != FORMAT:
            raise MHEError(f"not an energy report: format is {content.get('format')!r}, {FORMAT!r} is right")
        version = content.get("format_version")
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise MHEError(
                f"energy report of format version {version!r}; this hf_mhe reads versions 1 to {FORMAT_VERSION}: "
                "upgrade hf_mhe"
            )
        try:
            potential = content["potential"]
            return cls(
                groups=[GroupEnergy.from_dict(row) for row in content["groups"]],
                skipped={str(name): str(reason) for name, reason in content["skipped"].items()},
                source=str(content["source"]),
                revision=content.get("revision"),
                s=float(potential["s"]),
                distance=str(potential["distance"]),
                space=str(potential["space"]),
                duplicate_cosine=float(content["duplicate_cosine"]),
                hf_mhe_version=str(content.get("hf_mhe_version", "")),
                torch_version=str(content.get("torch_version", "")),
                notes=tuple(str(note) for note in content.get("notes", ())),
                unseen=None if (unseen := content.get("unseen", 0.0)) is None else float(unseen),
                left_out=int(content.get("left_out", _left_out_by_reason(content["skipped"]))),
            )
        except KeyError as error:
            raise MHEError(f"the energy report has no {error.args[0]!r}") from error
        except (TypeError, AttributeError) as error:
            raise MHEError(f"the energy report is malformed: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON, whole or not at all.

        Raises:
            MHEError: the file cannot be written.
        """
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EnergyReport:
        """Read a report that `save` wrote.

        Raises:
            MHEError: the file cannot be read or is no energy report; names the file.
        """
        content = read_json_object(path, "energy report")
        try:
            return cls.from_dict(content)
        except MHEError as error:
            raise MHEError(f"{os.fspath(path)}: {error}") from error

    def to_pandas(self, *, aggregate: bool = False) -> pandas.DataFrame:
        """One row per group, most crowded first: names, shape, energies, score, cosines, counts.

        With `aggregate`, the experts of a layer and the heads of a projection are one row, with the fields of
        `StackEnergy`; every other group is a row of its own in the same columns.
        """
        import pandas

        rows: list[StackEnergy] | list[GroupEnergy] = self.aggregated if aggregate else self.groups
        shown = columns(StackEnergy if aggregate else GroupEnergy, Shown.CSV)
        values = [[each.of(row) for each in shown] for row in rows]
        return pandas.DataFrame(values, columns=[each.key for each in shown])

    def to_csv(self, path: str | os.PathLike[str] | None = None, *, aggregate: bool = False) -> str:
        """The table as CSV, with all digits; also written to `path` where one is given. `aggregate`: as `to_pandas`.

        Raises:
            MHEError: the file cannot be written.
        """
        text = str(self.to_pandas(aggregate=aggregate).to_csv(index=False, lineterminator="\n"))
        if path is not None:
            write_atomic(path, text)
        return text

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One self-contained HTML page; also written to `path` where one is given.

        Raises:
            MHEError: the file cannot be written.
        """
        from hf_mhe.analysis.page.pages import report_page

        page = report_page(self)
        if path is not None:
            write_atomic(path, page)
        return page

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the spread of every group; the suffix of `path` chooses the format (.png, .svg, .pdf).

        Raises:
            MHEError: an unknown suffix, a file that cannot be written, no matplotlib (the extra `plots`).
        """
        from hf_mhe.analysis.page.plots import report_figure, save_figure

        return save_figure(report_figure(self), path)


def _left_out_by_reason(skipped: Mapping[str, Any]) -> int:
    """How many parameters patterns kept out, for a report from before there was a count: by the reasons it gives."""
    return sum(str(reason).startswith("left out by the include and exclude patterns") for reason in skipped.values())

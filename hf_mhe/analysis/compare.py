"""`compare`: two models, or saved reports of them, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mhe.analysis.analyzer import analyze
from hf_mhe.analysis.checkpoint.file_names import is_index
from hf_mhe.analysis.report.comparison import Comparison
from hf_mhe.analysis.report.report import EnergyReport

if TYPE_CHECKING:
    from torch import nn

    from hf_mhe.analysis.in_memory import Pipeline


def compare(
    before: EnergyReport | nn.Module | Pipeline | str | os.PathLike[str],
    after: EnergyReport | nn.Module | Pipeline | str | os.PathLike[str],
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Set two models side by side, group by group: what training, or a change of it, did to the neurons.

    Groups are matched by name, also where one model stands inside the other (see `Comparison.of`): a bare model and
    the same model fine-tuned under a head, a component and its pipeline.

    Each side is an `EnergyReport`, the path of one saved as JSON, or whatever `analyze` takes. A side that has to be
    analyzed is analyzed with the potential and `duplicate_cosine` of the side that is a report already.

    Raises:
        MHEError: as `analyze` and `EnergyReport.load`; the reports are of different potentials; no group in common, or
            several places in one model where the other may be.
    """
    sides = [_report_in(before), _report_in(after)]
    known = next((side for side in sides if side is not None), None)
    settings: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "progress": progress}
    if known is not None:
        settings |= {"s": known.s, "distance": known.distance, "space": known.space}
        settings["duplicate_cosine"] = known.duplicate_cosine
    reports = []
    for side, given in zip(sides, (before, after), strict=True):
        if side is None:
            side = analyze(given, **settings)  # type: ignore[arg-type]
        reports.append(side)
    return Comparison.of(*reports)


def _report_in(given: object) -> EnergyReport | None:
    """The report that an argument of `compare` is, or is the path of; None where it is something to analyze."""
    if isinstance(given, EnergyReport):
        return given
    if isinstance(given, (str, os.PathLike)):
        name = os.fspath(given)
        if name.endswith(".json") and not is_index(Path(name).name):
            return EnergyReport.load(name)
    return None

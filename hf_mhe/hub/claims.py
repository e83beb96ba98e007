"""What is said of a model beside its weights, checked once, where it is given."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypedDict

from hf_mhe.analysis import EnergyReport
from hf_mhe.errors import MHEError
from hf_mhe.hub.adapter import Adapter
from hf_mhe.hub.names import check_repo_id
from hf_mhe.hub.paths import hub_id
from hf_mhe.training import MHEConfig

# The metadata on what a model was trained from; where it was found and not given, a README's owner knows better.
_BASE_MODEL = frozenset(("base_model", "base_model_relation"))


class CardKeywords(TypedDict, total=False):
    """What a user may say of a model beside what was measured; see `model_card`."""

    base_model: str | None
    license: str | None
    datasets: str | Sequence[str] | None
    dataset_split: str | None
    language: str | Sequence[str] | None
    tags: Sequence[str]


@dataclass(frozen=True)
class Claims:
    """What is said of a model beside its weights: as a user gives it, and completed by what was measured.

    `before` is a report, or what `compare` takes for one; `after` is None until the model is measured. `card` has
    further keywords of `model_card`. `adapter` is what is known of an adapter from the model in memory, `origin` the
    repo id that the model was loaded from. `is_of_the_files` says that the energies were measured on the files.

    Raises:
        MHEError: an argument of a wrong type, a metric that is not finite, reports of different potentials.
    """

    config: MHEConfig | None = None
    before: Any = None
    after: EnergyReport | None = None
    metrics: Mapping[str, float] | None = None
    metrics_before: Mapping[str, float] | None = None
    repo_id: str | None = None
    card: CardKeywords = field(default_factory=CardKeywords)
    adapter: Adapter | None = None
    origin: str | None = None
    is_of_the_files: bool = False

    def __post_init__(self) -> None:
        if self.repo_id is not None:
            check_repo_id(self.repo_id)
        if self.config is not None and not isinstance(self.config, MHEConfig):
            raise MHEError(f"config must be an MHEConfig or None; got {type(self.config).__name__}")
        if self.after is not None:
            _check_reports(self.before if isinstance(self.before, EnergyReport) else None, self.after)
        named = self.before is None or isinstance(self.before, EnergyReport | str | os.PathLike)
        if not named and not hasattr(self.before, "named_parameters"):
            raise MHEError(
                f"before must be an EnergyReport, a model, a path, a repo id or None; got {type(self.before).__name__}"
            )
        _check_keywords(self.card)
        for side in ("metrics", "metrics_before"):
            object.__setattr__(self, side, _checked_metrics(getattr(self, side), side))

    @property
    def base_model(self) -> str | None:
        """Repo id of the model that this one was made from, as far as it is known."""
        return self.card.get("base_model") or self.origin

    @property
    def guessed(self) -> frozenset[str]:
        """The metadata of which a README's owner knows better."""
        return _BASE_MODEL if self.card.get("base_model") is None else frozenset()

    def reports(self) -> tuple[EnergyReport | None, EnergyReport]:
        """The reports before and after, once both have been measured.

        Raises:
            MHEError: one of them is something else.
        """
        _check_reports(self.before, self.after)
        assert self.after is not None
        return self.before, self.after


def _check_keywords(given: Mapping[str, Any]) -> None:
    """Make sure that further keywords are known ones, of the right type.

    Raises:
        MHEError: an unknown keyword (the known ones are listed), or a value of a wrong type.
    """
    lists = ("datasets", "language", "tags")
    for name, value in given.items():
        if name not in CardKeywords.__annotations__:
            known = ", ".join(CardKeywords.__annotations__)
            raise MHEError(f"{name!r} is no keyword of a model card; there are: {known}")
        if value is None or (isinstance(value, str) and name != "tags"):
            continue
        listed = name in lists and isinstance(value, Sequence) and not isinstance(value, str)
        if not listed or not all(isinstance(item, str) for item in value):
            right = "a list of strings" if name == "tags" else "a string or a list" if name in lists else "a string"
            raise MHEError(f"{name} must be {right}; got {value!r}")
    base = given.get("base_model")
    if base is not None and hub_id(base) is None:
        raise MHEError(f"base_model must be the id of a repository, such as 'google/vit-base'; got the path {base!r}")


def _check_reports(before: Any, after: Any) -> None:
    """Make sure that two reports can stand side by side.

    Raises:
        MHEError: one is not an `EnergyReport`, has no group, or their potentials differ.
    """
    for label, report in (("after", after), ("before", before)):
        if report is None and label == "before":
            continue
        if not isinstance(report, EnergyReport):
            raise MHEError(f"{label} must be an EnergyReport (what analyze returns); got {type(report).__name__}")
        if not report.groups:
            raise MHEError(
                f"the report {label} ({report.source}) has no group of neurons; there is nothing to publish"
            )
    if before is not None and before.potential != after.potential:
        raise MHEError(
            f"before and after must be of one potential; before has {before.potential.describe()}, "
            f"after {after.potential.describe()}: analyze both alike"
        )


def _checked_metrics(metrics: Mapping[str, float] | None, label: str) -> dict[str, float] | None:
    """The metrics as plain floats; None where none are given.

    Raises:
        MHEError: not a mapping of names to finite numbers.
    """
    if metrics is None:
        return None
    if not isinstance(metrics, Mapping):
        raise MHEError(f'{label} must be a mapping such as {{"accuracy": 0.97}}; got {type(metrics).__name__}')
    for name, value in metrics.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, Real):
            raise MHEError(f"{label} must map names to numbers; got {name!r}: {value!r}")
        if not math.isfinite(value):
            raise MHEError(f"{label}[{name!r}] must be finite; got {value!r}")
    return {name: float(value) for name, value in metrics.items()}

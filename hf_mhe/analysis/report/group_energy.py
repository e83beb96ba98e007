"""`GroupEnergy`: one neuron group's row of a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_mhe.analysis.report.columns import Shown, column
from hf_mhe.errors import MHEError

# What says which group a row is of.
_NAMES = Shown.TABLES | Shown.COMPARED_PAGE


@dataclass(frozen=True)
class GroupEnergy:
    """How the neurons of one group point: its energy, what that means, and the pairs that stand out.

    Energies are means over ordered pairs, without unit. Cosines are between neurons as they are; in half space, where
    a neuron and its mirror image count alike, duplicates are counted by the absolute cosine.
    """

    name: str = column(_NAMES | Shown.CARD | Shown.COMPARED_TERMINAL, label="layer", is_name=True)
    """Dotted module name."""
    kind: str = column(Shown.CSV | Shown.PAGE | Shown.COMPARED_PAGE, is_text=True)
    """What owns the neurons: "linear", "conv2d", "embedding", …; "unknown" where only the shape was known."""
    role: str = column(_NAMES | Shown.CARD, is_text=True)
    """"hidden", "output" or "embedding"."""
    n: int = column(_NAMES | Shown.COMPARED_TERMINAL, help="neurons with a direction")
    """Neurons with a direction: all rows except the dead ones."""
    d: int = column(_NAMES | Shown.COMPARED_TERMINAL, help="dimension of a neuron")
    """Dimension of a neuron."""
    parameters: tuple[str, ...] = column(Shown.NOWHERE)
    """Names of the parameters (of a checkpoint: of its tensors) that the neurons are stored in."""
    energy: float = column(
        Shown.TABLES | Shown.CARD | Shown.COMPARED | Shown.COMPARED_PAGE,
        digits=6,
        help="mean over ordered pairs of neurons",
    )
    """Mean energy, coincident pairs left out; NaN where all pairs coincide."""
    expected: float = column(Shown.TABLES | Shown.CARD, digits=6, help="of as many independent random directions")
    """Mean energy of n independent uniform directions; inf where it diverges (s ≥ d − 1)."""
    std: float = column(Shown.CSV, digits=6)
    """Standard deviation of the mean energy of n independent uniform directions; inf where it diverges."""
    lower_bound: float = column(Shown.CSV, digits=6)
    """No n directions have a lower mean energy."""
    score: float | None = column(
        Shown.TABLES | Shown.CARD | Shown.COMPARISONS, digits=3, help="0 optimum, 1 random draw, above 1 redundant"
    )
    """(energy − lower_bound) / (expected − lower_bound): 0 optimum, 1 random draw, above 1 redundant. None: undefined.
    """
    z: float | None = column(
        Shown.CSV | Shown.PAGE | Shown.COMPARED, digits=1, help="standard deviations of the random draw above its mean"
    )
    """Standard deviations of the random draw by which the energy is above `expected`; None where undefined."""
    max_cosine: float = column(
        Shown.TABLES | Shown.CARD | Shown.COMPARISONS,
        label="largest cosine",
        short="max cos",
        digits=3,
        help="of two neurons",
    )
    """Largest cosine of two neurons."""
    min_cosine: float = column(Shown.CSV, digits=3)
    """Smallest cosine of two neurons."""
    mean_nearest_cosine: float = column(Shown.CSV | Shown.COMPARED, digits=3)
    """Mean, over the neurons, of the cosine to the neuron nearest in direction."""
    nearest_pair: tuple[int, int] = column(Shown.PAGE, help="rows", is_text=True)
    """Rows of the two neurons with the largest cosine."""
    near_duplicates: int = column(
        Shown.TABLES | Shown.COMPARED | Shown.COMPARED_PAGE, label="near-duplicates", short="near-dup", help="pairs"
    )
    """Unordered pairs whose cosine reaches the report's `duplicate_cosine`, coincident ones included."""
    coincident: int = column(Shown.CSV | Shown.PAGE | Shown.COMPARED, help="pairs that point exactly the same way")
    """Unordered pairs that point the same way to the last digit."""
    dead: int = column(Shown.TABLES | Shown.COMPARED | Shown.COMPARED_PAGE, help="rows of zeros")
    """Rows of zeros."""
    dead_rows: tuple[int, ...] = column(Shown.NOWHERE, repr=False)
    """Which rows they are."""
    histogram: tuple[int, ...] = column(Shown.NOWHERE, repr=False)
    """Unordered pairs per bin of cosine, equal bins on [−1, 1]."""
    stack: str | None = column(Shown.CSV, is_name=True, default=None)
    """Name of the stack of experts or heads that it is one of, `*` in the place of its number; None: stands alone."""

    row_names: tuple[str, ...] | None = column(Shown.NOWHERE, default=None, repr=False)
    """What the rows are called, by their numbers in the matrix, where `measure` was given names."""

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON types; an infinite or undefined number is None."""
        row = dataclasses.asdict(self)
        return {key: _plain(value) for key, value in row.items()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> GroupEnergy:
        """The row of which `to_dict` made `row`; keys that this version does not know are left out.

        Raises:
            MHEError: a key is missing, or a value has the wrong type.
        """
        if not isinstance(row, Mapping):
            raise MHEError(f"a group of an energy report is a {type(row).__name__}, not an object")
        label = f"group {row.get('name', '?')!r}"
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            if item.name not in row and item.default is dataclasses.MISSING:
                raise MHEError(f"{label} of the energy report has no {item.name!r}")
            if item.name in row:
                values[item.name] = _typed(item.name, str(item.type), row[item.name], label)
        return cls(**values)


# What None stands for in JSON, which has neither infinity nor NaN.
_NONE_MEANS = {"energy": math.nan, "expected": math.inf, "std": math.inf, "lower_bound": math.nan}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value


def _typed(key: str, kind: str, value: Any, label: str) -> Any:
    if value is None and key in _NONE_MEANS:
        return _NONE_MEANS[key]
    if value is None and kind.endswith("| None"):
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind.startswith("str") and isinstance(value, str):
        return value
    if kind == "int" and number and isinstance(value, int):
        return value
    if kind.startswith("float") and number:
        return float(value)
    if kind.startswith("tuple") and isinstance(value, (list, tuple)):
        of = str if "str" in kind else int
        if all(isinstance(item, of) for item in value):
            return tuple(value)
    raise MHEError(f"{label} of the energy report has {key} = {value!r}; a {kind} is right")

"""`GroupEnergy`: one neuron group's row of a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_mhe.analysis.report.columns import Shown, column
from hf_mhe.analysis.report.json_values import read_fields, to_json
from hf_mhe.analysis.report.tokens import Vocabulary
from hf_mhe.analysis.report.variant import Variant
from hf_mhe.errors import MHEError

# What says which group a row is of.
_NAMES = Shown.TABLES | Shown.COMPARED_PAGE


@dataclass(frozen=True, kw_only=True)
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
    equivalent_dimension: float | None = column(
        Shown.TABLES | Shown.CARD | Shown.COMPARED | Shown.COMPARED_PAGE,
        label="equivalent dimension",
        short="equiv dim",
        digits=1,
        help="the dimension in which random directions would be as crowded",
        default=None,
    )
    """The dimension in which independent random directions would be as crowded; inf where no two neurons are closer
    than a right angle on average. None: an earlier version wrote the report, and did not have it."""
    spread: float | None = column(
        Shown.TABLES | Shown.CARD | Shown.COMPARISONS,
        digits=3,
        help="equivalent dimension / d: 1 random draw, below 1 crowded",
        default=None,
    )
    """equivalent_dimension / d: 1 for independent random directions however many, below 1 crowded."""
    equivalent_dimension_z: float | None = column(
        Shown.CSV | Shown.COMPARED,
        digits=1,
        help="standard deviations of the random draw by which the equivalent dimension is above d",
        default=None,
    )
    """Standard deviations of n independent random directions by which the equivalent dimension is above d."""
    verdict: str | None = column(
        Shown.TABLES | Shown.CARD | Shown.COMPARED | Shown.COMPARED_PAGE,
        help="what crowds the neurons, the largest cause first",
        is_text=True,
        default=None,
    )
    """What crowds the neurons: "copies", "shared direction", "few dimensions", the largest first and a comma between;
    "spread" or "as random" where nothing does. See Note [The verdict] in `hf_mhe.energy.reference.verdict`."""
    parameters: tuple[str, ...] = column(Shown.NOWHERE)
    """Names of the parameters (of a checkpoint: of its tensors) that the neurons are stored in."""
    energy: float = column(
        Shown.TABLES | Shown.CARD | Shown.COMPARED | Shown.COMPARED_PAGE,
        digits=6,
        help="mean over ordered pairs of neurons",
    )
    """Mean energy, coincident pairs left out; NaN where all pairs coincide."""
    expected: float = column(
        Shown.CSV | Shown.PAGE | Shown.CARD, digits=6, help="of as many independent random directions"
    )
    """Mean energy of n independent uniform directions; inf where it diverges (s ≥ d − 1)."""
    std: float = column(Shown.CSV, digits=6)
    """Standard deviation of the mean energy of n independent uniform directions; inf where it diverges."""
    lower_bound: float = column(Shown.CSV, digits=6)
    """No n directions have a lower mean energy."""
    score: float | None = column(
        Shown.TABLES | Shown.CARD | Shown.COMPARISONS, digits=3, help="0 optimum, 1 random draw, above 1 redundant"
    )
    """(energy − lower_bound) / (expected − lower_bound): 0 optimum, 1 random draw, above 1 redundant. Infinite, as the
    energy of all pairs is, where some coincide. None: undefined."""
    z: float | None = column(
        Shown.CSV | Shown.PAGE | Shown.COMPARED, digits=1, help="standard deviations of the random draw above its mean"
    )
    """Standard deviations of the random draw by which the energy is above `expected`; None where undefined."""
    shared_direction: float | None = column(
        Shown.CSV, digits=6, help="part of energy − expected: the neurons lean to one side", default=None
    )
    """Part of `energy − expected`: f'(0) · mean cosine. The three parts add up; None where `expected` is infinite."""
    concentration: float | None = column(
        Shown.CSV, digits=6, help="part of energy − expected: the neurons fill few dimensions", default=None
    )
    """Part of `energy − expected`: ½ f''(0) · (mean squared cosine − 1/d)."""
    close_pairs: float | None = column(
        Shown.CSV, digits=6, help="part of energy − expected: pairs closer than the moments say", default=None
    )
    """Part of `energy − expected`: the rest."""
    mean_cosine: float | None = column(Shown.CSV | Shown.COMPARED, digits=4, default=None)
    """Mean cosine over pairs, coincident ones included: the squared length of the mean direction, up to 1/n."""
    mean_square_cosine: float | None = column(Shown.CSV | Shown.COMPARED, digits=6, default=None)
    """Mean squared cosine over pairs, coincident ones included; 1/d for a random draw."""
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
    distinct: int | None = column(
        Shown.CSV | Shown.PAGE | Shown.COMPARED,
        help="neurons if each cluster of near-duplicates counts once",
        default=None,
    )
    """Neurons if each cluster of near-duplicates counts once."""
    coincident: int = column(Shown.CSV | Shown.PAGE | Shown.COMPARED, help="pairs that point exactly the same way")
    """Unordered pairs that point the same way to the last digit."""
    dead: int = column(Shown.TABLES | Shown.COMPARED | Shown.COMPARED_PAGE, help="rows of zeros")
    """Rows of zeros."""
    dead_rows: tuple[int, ...] = column(Shown.NOWHERE, repr=False)
    """Which rows they are."""
    near_dead: int | None = column(
        Shown.CSV | Shown.PAGE, label="near-dead", help="rows shorter than 2^-12 of the longest", default=None
    )
    """Further rows shorter than 2^-12 of the longest, whose direction may be a rounding error; they are measured, and
    training takes them for dead."""
    near_dead_rows: tuple[int, ...] = column(Shown.NOWHERE, default=(), repr=False)
    """Which rows they are."""
    histogram: tuple[int, ...] = column(Shown.NOWHERE, repr=False)
    """Unordered pairs per bin of cosine, equal bins on [−1, 1]."""
    stack: str | None = column(Shown.CSV, is_name=True, default=None)
    """Name of the stack of experts or heads that it is one of, `*` in the place of its number; None: stands alone."""
    apart: str | None = column(
        Shown.CSV | Shown.TERMINAL, help="why the neurons do not compete", is_text=True, default=None, on_request=True
    )
    """Why the neurons do not compete, so that none of them is superfluous for being like another: the group stays out
    of the summary, the ranking and checks. None: they compete."""
    duplicate_pairs: tuple[tuple[int, int, float], ...] = column(Shown.NOWHERE, default=(), repr=False)
    """Near-duplicate pairs with their cosine, rows numbered as in the weight, the closest first; the first of them."""
    clusters: tuple[tuple[int, ...], ...] = column(Shown.NOWHERE, default=(), repr=False)
    """Rows that near-duplicate pairs join, each cluster in order, the largest first."""
    vocabulary: Vocabulary | None = column(Shown.NOWHERE, default=None, repr=False)
    """Of a checkpoint's vocabulary, what its tokens are: alike, equal, at the mean, zero or never trained."""
    spectral_norm: float | None = column(
        Shown.CSV | Shown.PAGE | Shown.TERMINAL, digits=3, help="largest singular value", default=None, on_request=True
    )
    """Largest singular value of the weight as it is stored; None unless the spectrum was asked for, as the ranks are.
    """
    stable_rank: float | None = column(
        Shown.CSV | Shown.PAGE | Shown.TERMINAL,
        digits=1,
        help="squared Frobenius norm / squared spectral norm",
        default=None,
        on_request=True,
    )
    """Squared Frobenius norm over the squared spectral norm."""
    effective_rank: float | None = column(
        Shown.CSV | Shown.PAGE | Shown.TERMINAL,
        digits=1,
        help="exponential of the entropy of the singular values",
        default=None,
        on_request=True,
    )
    """Exponential of the entropy of the singular values (Roy and Vetterli, 2007)."""
    numerical_rank: int | None = column(
        Shown.CSV | Shown.PAGE | Shown.TERMINAL,
        help="singular values above rounding",
        default=None,
        on_request=True,
    )
    """Singular values above rounding, as numpy.linalg.matrix_rank counts them."""
    variants: tuple[Variant, ...] = column(Shown.NOWHERE, default=(), repr=False)
    """The same walk under the paper's twelve potentials, if they were asked for."""
    row_names: dict[int, str] = column(Shown.NOWHERE, default_factory=dict, repr=False)
    """What the rows are called that stand in `duplicate_pairs`, `clusters`, `nearest_pair` or `dead_rows`: the tokens
    of a vocabulary, the names given to `measure`."""

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON types; an infinite or undefined number is None, and what an old report lacks is left out."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {key: to_json(value) for key, value in values.items() if value is not None or key not in _NONE_MEANS}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> GroupEnergy:
        """The row of which `to_dict` made `row`; keys that this version does not know are left out.

        Raises:
            MHEError: a key is missing, or a value has the wrong type.
        """
        if not isinstance(row, Mapping):
            raise MHEError(f"a group of an energy report is a {type(row).__name__}, not an object")
        label = f"group {row.get('name', '?')!r} of the energy report"
        found: GroupEnergy = read_fields(cls, row, label, _NONE_MEANS)
        if found.coincident and found.score is None and math.isfinite(found.expected):
            return dataclasses.replace(found, score=math.inf, z=math.inf)
        return found


# What None stands for in JSON, which has neither infinity nor NaN.
_NONE_MEANS = {
    "energy": math.nan,
    "expected": math.inf,
    "std": math.inf,
    "lower_bound": math.nan,
    "equivalent_dimension": math.inf,
    "spread": math.inf,
}

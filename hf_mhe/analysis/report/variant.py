"""`Variant`: one group's energy under one more potential, from the same walk."""

from __future__ import annotations

from dataclasses import dataclass

from hf_mhe.energy import PairStatistics, Potential, energy_score
from hf_mhe.energy.reference.crowding_parts import crowding_parts


@dataclass(frozen=True)
class Variant:
    """The mean energy of one group's pairs under a potential, what it means, and what its excess is made of.

    Attributes:
        s: exponent of the potential.
        distance: "euclidean" or "angular".
        space: "full" or "half".
        energy: as in `GroupEnergy`, like all that follows; None stands for what is infinite or not defined.
    """

    s: float
    distance: str
    space: str
    energy: float | None
    expected: float | None
    lower_bound: float | None
    score: float | None
    shared_direction: float | None
    concentration: float | None
    close_pairs: float | None

    @property
    def label(self) -> str:
        """As the paper's tables call it: `a` before the exponent for angles, and `half` for half space."""
        return f"{'a' if self.distance == 'angular' else ''}{self.s:g}{' half' if self.space == 'half' else ''}"


def variant_of(pairs: PairStatistics, potential: Potential) -> Variant:
    """One of the potentials that a walk was asked for."""
    energy = pairs.variants[potential]
    meaning = energy_score(energy, pairs.n, pairs.d, potential)
    parts = crowding_parts(
        energy,
        pairs.n,
        pairs.d,
        potential,
        mean_cosine=pairs.mean_cosine,
        mean_square_cosine=pairs.mean_square_cosine,
        coincident=pairs.coincident,
    )
    return Variant(
        potential.s,
        potential.distance,
        potential.space,
        _finite(energy),
        _finite(meaning.expected),
        _finite(meaning.lower_bound),
        None if pairs.coincident else meaning.score,
        parts.shared_direction,
        parts.concentration,
        parts.close_pairs,
    )


def _finite(value: float) -> float | None:
    """None for what is infinite or not defined, which JSON cannot say."""
    return value if abs(value) < float("inf") else None

"""The score: where an energy lies between the provable optimum and a random draw, comparable across shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.reference.bounds import lower_bound
from hf_mhe.energy.reference.expectation import check_shape, random_mean, random_std
from hf_mhe.errors import MHEError


@dataclass(frozen=True)
class EnergyScore:
    """A mean energy set against what n directions in dimension d can be, and would be by chance.

    Args:
        expected: mean of the energy over independent uniform directions; `inf` where it diverges.
        std: standard deviation of the same; `inf` where it diverges.
        lower_bound: no configuration has a lower energy.
        score: `(energy − lower_bound) / (expected − lower_bound)`: 0 at the provable optimum, 1 at a random draw,
            above 1 where the neurons point together more than chance; None where `expected` is
            `inf` or equals `lower_bound`.
        z: `(energy − expected) / std`; None where `expected` or `std` is `inf`, or `std` is 0.

    Both are None where the energy is NaN, the mean of no pairs at all.
    """

    expected: float
    std: float
    lower_bound: float
    score: float | None
    z: float | None


def energy_score(energy: float, n: int, d: int, potential: Potential) -> EnergyScore:
    """Score the mean `energy` of `n` neurons in dimension `d` under `potential` against its reference numbers.

    The three reference numbers are cached by their functions, since a checkpoint repeats shapes.

    Raises:
        MHEError: n below 2, d below 1, either not an integer, or a potential with softening: the reference numbers are
            those of the exact energy.
    """
    if potential.softening:
        raise MHEError(f"energy_score compares exact energies: softening must be 0, got {potential.softening!r}")
    n, d = check_shape(n, d)
    expected, std, least = random_mean(n, d, potential), random_std(n, d, potential), lower_bound(n, d, potential)
    energy = float(energy)
    score = z = None
    if math.isfinite(expected) and not math.isnan(energy):
        span = expected - least
        # Below rounding there is no span: huge d with few neurons, or an s so large that both underflow.
        if span > 1e-12 * abs(expected):
            score = (energy - least) / span
        if 0.0 < std < math.inf:
            z = (energy - expected) / std
    return EnergyScore(expected, std, least, score, z)

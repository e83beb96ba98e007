"""What independent uniform directions would cost: the mean and the spread of their hyperspherical energy."""

from __future__ import annotations

import math
from functools import lru_cache

from hf_mhe.checks import check_integer
from hf_mhe.choices import Distance, Space
from hf_mhe.energy.distances.spherical import SphericalDistance
from hf_mhe.energy.potential import Potential


def check_shape(n: int, d: int) -> tuple[int, int]:
    """The number of neurons `n` and their dimension `d` as ints; raises MHEError unless n >= 2 and d >= 1."""
    return check_integer("n", n, at_least=2), check_integer("d", d, at_least=1)


def expected_energy(
    n: int, d: int, s: float = 2.0, *, distance: Distance = "euclidean", space: Space = "full"
) -> float:
    """Mean over independent uniform directions of the mean hyperspherical energy of `n` neurons in dimension `d`.

    Example:
        >>> from hf_mhe import expected_energy
        >>> round(expected_energy(512, 64), 6)  # (d - 2) / (2 d - 6), whatever n is
        0.508197

    Euclidean in closed form: ρ² = 4B with B ~ Beta(a, a), a = (d−1)/2, so that E f is
    2^(−s) Γ(a − s/2) Γ(2a) / (Γ(a) Γ(2a − s/2)), or −(log 4 + ψ(a) − ψ(2a))/2 for s = 0. Angular by quadrature against
    the density ∝ (1 − c²)^((d−3)/2) of the cosine. Relative error below 1e-9 for d up to 1e6. In half space
    E f(c) = E f(−c), and the n pairs of a neuron with its own mirror image add a constant:
    (4n(n−1) E f + 2n f(−1)) / (2n(2n−1)).

    Returns `inf` where the expectation diverges: s >= d − 1, and any s for d = 1, where two directions coincide with
    probability one half.

    Raises:
        MHEError: n below 2, d below 1, either not an integer, or an option that `Potential` does not take.
    """
    n, d = check_shape(n, d)
    return random_mean(n, d, Potential(s=s, distance=distance, space=space))


def expected_energy_std(
    n: int, d: int, s: float = 2.0, *, distance: Distance = "euclidean", space: Space = "full"
) -> float:
    """Standard deviation, over independent uniform directions, of the mean hyperspherical energy of `n` neurons.

    Exact, not an approximation for large n: the cosines c_ij and c_ik of independent uniform directions are
    independent, because given neuron i the distribution of each does not depend on where i points. So all pair
    energies are uncorrelated and their variances add: Var f / (n(n−1)/2) in full space; in half space
    16 · n(n−1)/2 · Var(f(c) + f(−c)) / (2n (2n−1))².

    Returns `inf` where E f² diverges: 2 s >= d − 1, and any s for d = 1.

    Raises:
        MHEError: n below 2, d below 1, either not an integer, or an option that `Potential` does not take.
    """
    n, d = check_shape(n, d)
    return random_std(n, d, Potential(s=s, distance=distance, space=space))


def random_mean(n: int, d: int, potential: Potential) -> float:
    """`expected_energy` of a potential, for numbers that have been checked."""
    mean = _pair_mean(d, float(potential.s), potential.rho)
    if potential.space == "full":
        return mean
    return (2 * (n - 1) * mean + potential.mirror_energy()) / (2 * n - 1)


def random_std(n: int, d: int, potential: Potential) -> float:
    """`expected_energy_std` of a potential, for numbers that have been checked."""
    mirrored = potential.space == "half"
    deviation = _pair_std(d, float(potential.s), potential.rho, mirrored)
    pairs = n * (n - 1) / 2
    if mirrored:
        return deviation * 4 * math.sqrt(pairs) / (2 * n * (2 * n - 1))
    return deviation / math.sqrt(pairs)


@lru_cache(maxsize=4096)
def _pair_mean(d: int, s: float, distance: SphericalDistance) -> float:
    return math.inf if d == 1 or s >= d - 1 else distance.mean(d, s)


@lru_cache(maxsize=4096)
def _pair_std(d: int, s: float, distance: SphericalDistance, mirrored: bool) -> float:
    return math.inf if d == 1 or 2 * s >= d - 1 else distance.std(d, s, mirrored=mirrored)

"""A provable lower bound of the mean hyperspherical energy: no configuration of n directions in R^d lies below it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from hf_mhe.choices import Distance, Space
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.reference.expectation import check_shape
from hf_mhe.energy.sphere.levenshtein import riesz


@lru_cache(maxsize=4096)
def lower_bound(n: int, d: int, potential: Potential) -> float:
    """`energy_lower_bound` of a potential, for numbers that have been checked."""
    half = potential.space == "half"
    if d == 1:  # there are two directions, and one line
        return math.inf if half or n > 2 else potential.mirror_energy()
    with np.errstate(over="ignore"):  # at a huge s a pair's energy may be too large for a float: inf is the answer
        if d == 2:
            return _polygon_mean(2 * n if half else n, potential)
        if half:
            lines = potential.rho.lower_bound_of_lines(n, d, potential.s)
            return ((n - 1) * lines + potential.mirror_energy()) / (2 * n - 1)
        return potential.rho.lower_bound(n, d, potential.s)


def _polygon_mean(points: int, potential: Potential) -> float:
    # Exact optimum on the circle: mean pair energy of equally spaced points (the proof's last paragraph). The arcs on
    # the two sides mirror each other, so only one is summed; every angle is >= 2π/points.
    half_arcs = math.pi * np.arange(1, (points + 1) // 2, dtype=np.float64) / points
    total = 2 * float(riesz(potential.rho.of_angle(2 * half_arcs), potential.s).sum())
    if points % 2 == 0:
        total += potential.mirror_energy()
    return total / (points - 1)


def energy_lower_bound(
    n: int, d: int, s: float = 2.0, *, distance: Distance = "euclidean", space: Space = "full"
) -> float:
    """A number that the mean hyperspherical energy of no `n` neurons in dimension `d` lies below.

    Example:
        >>> from hf_mhe import energy_lower_bound
        >>> round(energy_lower_bound(4, 3), 6)  # the regular tetrahedron: every squared distance is 8/3
        0.375

    The universal lower bound of Boyvalenkov et al. (2016), by Levenshtein's quadrature; angular in full space by a
    linear program in the manner of Delsarte and Yudin; exact for d = 2. It is attained, and so the optimum: in full
    space, euclidean, by the regular simplex (n <= d + 1), the cross-polytope (n = 2 d) and every other sharp code,
    such as the icosahedron; in half space, for both distances, by orthonormal rows (n <= d); in full space, angular,
    for n = 2 and n = 3. `inf` for d = 1 where n directions cannot be distinct. The proof is in
    Note [proof of the lower bound]; the number is rounded at about 1e-12 relative, 1e-9 for the linear program.

    Raises:
        MHEError: n below 2, d below 1, either not an integer, or an option that `Potential` does not take.
    """
    n, d = check_shape(n, d)
    return lower_bound(n, d, Potential(s=s, distance=distance, space=space))

"""MHS: the smallest distance between any two neurons."""

from __future__ import annotations

from torch import Tensor

from hf_mhe.choices import Distance, Space
from hf_mhe.energy.family.inputs import directions
from hf_mhe.energy.family.nearest import nearest_neighbours, pair_distance
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype, without_autocast
from hf_mhe.energy.rows import DeadRows


@without_autocast
def separation_penalty(
    weight: Tensor, *, distance: Distance = "euclidean", space: Space = "full", dead: DeadRows = "error"
) -> Tensor:
    """Minus the smallest distance between any two neurons' directions (maximum hyperspherical separation, MHS).

    `-min_{i != j} rho(w_i, w_j)`: the Tammes problem. Only the two closest neurons receive a gradient. The simplex,
    `n <= d + 1`, has the least value: `-sqrt(2 n / (n - 1))`.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        distance: `"euclidean"` (chord) or `"angular"` (arc, in radians).
        space: `"full"`, or `"half"` to take the nearer of a neuron and its mirror image.
        dead: what to do with rows of zeros: `"error"`, or `"skip"` to leave them out.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise. Searched block by block, then recomputed in
        float64 from the two rows. Two equal rows have the distance 0 and no gradient on each other.

    Raises:
        MHEError: bad weight (see `hyperspherical_energy`) or option.

    Source: Liu et al., "Learning with Hyperspherical Uniformity", AISTATS 2021 (arXiv:2103.01649), MHS.
    Deviations: the authors' code (wy1iu/Sphere-Uniformity) takes the squared chord, whose gradient fades as two
    neurons approach, and sums over ties.
    """
    potential = Potential(distance=distance, space=space)
    unit = directions(weight, dead=dead, exact=True)
    fixed, mirrored = unit.detach(), space == "half"
    neighbours = nearest_neighbours(fixed.to(energy_dtype(weight)), fixed, mirrored=mirrored)
    first = int(pair_distance(fixed, fixed[neighbours], potential.rho, mirrored=mirrored).argmin())
    smallest = pair_distance(unit[first], unit[neighbours[first]], potential.rho, mirrored=mirrored)
    return -smallest.to(energy_dtype(weight))

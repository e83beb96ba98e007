"""MMA: the mean over neurons of the angle to the nearest other one."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from hf_mhe.checks import check_option
from hf_mhe.choices import Space
from hf_mhe.energy.distances.table import DISTANCES
from hf_mhe.energy.family.inputs import directions
from hf_mhe.energy.family.nearest import nearest_neighbours, pair_distance
from hf_mhe.energy.precision import energy_dtype, without_autocast
from hf_mhe.energy.rows import DeadRows


@without_autocast
def minimal_angle_penalty(weight: Tensor, *, space: Space = "full", dead: DeadRows = "error") -> Tensor:
    """Minus the mean over neurons of the angle, in radians, to the nearest other neuron (MMA regularization).

    `-(1/n) sum_i min_{j != i} arccos(cos(w_i, w_j))`; lowest where the nearest neighbours are far. The simplex,
    `n <= d + 1`, has the least value that n neurons can have: `-arccos(-1 / (n - 1))`.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        space: `"full"`, or `"half"` to take the nearer of a neuron and its mirror image (angles of lines).
        dead: what to do with rows of zeros: `"error"`, or `"skip"` to leave them out of n.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise. Neighbours are searched block by block without
        a gradient; the n angles to them are then recomputed in float64 from the rows, differentiably: right to the
        last digits where rows nearly coincide. Two equal rows have the angle 0 and no gradient on each other.

    Raises:
        MHEError: bad weight (see `hyperspherical_energy`) or option.

    Source: Wang et al., "MMA Regularization: Decorrelating Weights of Neural Networks by Maximizing the Minimal
    Angles", NeurIPS 2020 (arXiv:2006.06527), the loss l_MMA. Deviations: the authors' code clamps the
    cosine to 0.99999, which ends the gradient below 0.26 degrees, and holds n x n; half space is not in the paper.
    """
    check_option("space", space, get_args(Space))
    unit = directions(weight, dead=dead, exact=True)
    fast = unit.detach().to(energy_dtype(weight))
    neighbours = nearest_neighbours(fast, unit.detach(), mirrored=space == "half")
    angles = pair_distance(unit, unit[neighbours], DISTANCES["angular"], mirrored=space == "half")
    return -angles.mean().to(energy_dtype(weight))

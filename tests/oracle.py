"""What the energy is, written down once for all tests: the definition in float64, word for word, and published minima.

Nothing here imports the package. A new distance has its definition in `RHO`, and is then part of every test that goes
over all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

# rho of two unit vectors from `|u - v|` and `|u + v|`, which keep their digits where `2 - 2c` loses them.
RHO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": lambda near, far: near,
    "angular": lambda near, far: 2 * torch.atan2(near, far),
}
DISTANCES, SPACES = tuple(RHO), ("full", "half")
VARIANTS = list(itertools.product((0, 1, 2), DISTANCES, SPACES))

# Lowest known energies of Thomson's problem (d = 3, s = 1, unordered pairs): Wales, Ulker, "Structure and dynamics of
# spherical crystals characterized for the Thomson problem", Phys. Rev. B 74 (2006), and Cambridge Cluster Database.
THOMSON = {
    2: 0.5,
    3: 1.732050808,
    4: 3.674234614,
    5: 6.474691495,
    6: 9.985281374,
    7: 14.452977414,
    8: 19.675287861,
    12: 49.165253058,
    24: 223.347074052,
    32: 412.261274651,
}


def kernel(rho: Tensor, s: float, softening: float = 0.0) -> Tensor:
    """`f_s(rho)`, with Plummer softening."""
    rho = torch.sqrt(rho**2 + softening**2) if softening else rho
    return torch.log(1 / rho) if s == 0 else rho ** (-s)


def directions(weight: Tensor) -> Tensor:
    """Rows `(..., n, d)` in float64, of length one."""
    rows = weight.double()
    return rows / rows.pow(2).sum(-1, keepdim=True).sqrt()


def slow_energy(
    weight: Tensor,
    s: float = 2.0,
    distance: str = "euclidean",
    space: str = "full",
    reduction: str = "mean",
    softening: float = 0.0,
    tangent_above: float | None = None,
) -> Tensor:
    """All ordered pairs of the points, which in half space are the 2n points with their mirror images.

    The outer loop is explicit; the inner one is a row of distances to every other point, from coordinates, in float64.
    Pairs above the cosine `tangent_above` count by the tangent there (of an energy without softening).
    """
    points = directions(weight)
    n = len(points)
    if space == "half":
        points = torch.cat([points, -points])
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(points)):
        rest = torch.ones(len(points), dtype=torch.bool)
        rest[i] = False
        if space == "half":  # its own mirror image: a constant, on which autograd would divide zero by zero
            rest[(i + n) % len(points)] = False
            total = total + kernel(_opposite(distance), s, softening)
        others = points[rest]
        near, far = ((others + sign * points[i]).pow(2).sum(1).sqrt() for sign in (-1, 1))
        if tangent_above is None:
            total = total + kernel(RHO[distance](near, far), s, softening).sum()
        else:
            total = total + _with_tangent(near, far, s, distance, tangent_above).sum()
    return total if reduction == "sum" else total / (len(points) * (len(points) - 1))


def _with_tangent(near: Tensor, far: Tensor, s: float, distance: str, above: float) -> Tensor:
    """`f`, beyond a cosine along its tangent there; the chord's length is `sqrt(2 - 2c)`."""
    edge = math.sqrt(2 - 2 * above) if distance == "euclidean" else math.acos(above)
    inner = 1.0 if distance == "euclidean" else edge / math.sin(edge)  # -rho drho/dc
    value = edge**-s if s > 0 else -math.log(edge)
    slope = (s or 1.0) * edge ** (-s - 2) * inner
    cos = 1 - near.square() / 2
    is_beyond = cos > above
    rho = RHO[distance](torch.where(is_beyond, torch.ones_like(near), near), far)
    return torch.where(is_beyond, value + slope * (cos - above), kernel(rho, s, 0.0))


def pair_values(left: Tensor, right: Tensor, s: float, distance: str, space: str, softening: float = 0.0) -> Tensor:
    """`F` of each pair of unit vectors, which in half space is `f` of the pair and of its mirror image."""
    near, far = (torch.linalg.vector_norm(left + sign * right, dim=-1) for sign in (-1, 1))
    value = kernel(RHO[distance](near, far), s, softening)
    return value + kernel(RHO[distance](far, near), s, softening) if space == "half" else value


def quick_energy(
    weight: Tensor, s: float = 2.0, distance: str = "euclidean", space: str = "full", softening: float = 0.0
) -> Tensor:
    """`slow_energy` for more points, or many samples `(..., n, d)`: all distances at once, never through `2 - 2c`."""
    points = directions(weight)
    n = points.shape[-2]
    first, second = torch.triu_indices(n, n, offset=1)
    near, far = (
        torch.cdist(points, other, compute_mode="donot_use_mm_for_euclid_dist")[..., first, second]
        for other in (points, -points)
    )
    pairs = kernel(RHO[distance](near, far), s, softening).sum(-1)
    if space == "full":
        return pairs * 2 / (n * (n - 1))
    pairs = pairs + kernel(RHO[distance](far, near), s, softening).sum(-1)
    return (4 * pairs + 2 * n * kernel(_opposite(distance), s, softening)) / (2 * n * (2 * n - 1))


def _opposite(distance: str) -> Tensor:
    """The distance of two opposite points."""
    near, far = torch.tensor([2.0, 0.0], dtype=torch.float64)
    return RHO[distance](near, far)

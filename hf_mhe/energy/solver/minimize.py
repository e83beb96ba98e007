"""Directions of least energy: a Thomson solver for every potential, and maximally separated class prototypes."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.checks import check_integer, check_number
from hf_mhe.choices import Distance, Space
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.reference.bounds import lower_bound
from hf_mhe.energy.reference.expectation import check_shape
from hf_mhe.energy.rows import project_
from hf_mhe.energy.solver.lbfgs import Minimum, minimize_on_spheres
from hf_mhe.energy.walks.blocked import walk
from hf_mhe.errors import MHEError

# Note [Small and large problems]
# Up to a thousand coordinates a minimum is reached to all digits in a second, and since there are many local
# ones, several random starts are compared. Larger problems are glassy: thousands of steps creep along valleys for the
# last half percent of the way, and the local minima differ by less than that. One start and a looser
# tolerance do for them: 1000 directions in d = 64 stop 0.4 % of the gap between random and bound short of where ten
# times the work ends. A tolerance of 1e-8 would be too loose: 1000 directions in d = 512 pass a saddle there,
# after 85 % of the way.
_SMALL_COORDINATES = 1024
_TOLERANCE_SMALL, _TOLERANCE_LARGE = 1e-15, 1e-9
_RESTARTS, _RESTARTS_WORK = 8, 1 << 20  # the most, and the n^2 d that they may add up to
_HISTORY_SMALL, _HISTORY_LARGE = 20, 8

_ATTAINED = 1e-9  # relative mean distance within which a bound counts as reached; its own rounding is the limit
_GENTLE_EXPONENT = 8.0
_TIE_CHORD = 1e-3
_TIE_ROUNDS = 3


@torch.no_grad()
def minimize_energy(
    n: int,
    d: int,
    s: float = 1.0,
    *,
    distance: Distance = "euclidean",
    space: Space = "full",
    seed: int = 0,
    restarts: int | None = None,
    tolerance: float | None = None,
    max_iterations: int = 3000,
    known: bool = True,
) -> Tensor:
    """Directions that minimize the hyperspherical energy: Thomson's problem, or fixed prototypes for n classes.

    Example:
        >>> from hf_mhe import minimize_energy
        >>> prototypes = minimize_energy(100, 512)  # 100 classes as far apart as can be
        >>> prototypes.shape
        torch.Size([100, 512])
        >>> round(float(prototypes[0] @ prototypes[1]), 6)  # -1/99, as of every pair
        -0.010101

    Riemannian L-BFGS on the product of n unit spheres over the exact walk in float64, from several random starts; the
    lowest end wins. For more points than a few dozen it is a good local minimum, as every solver's answer is.

    Note:
        Where a configuration is known whose energy equals `energy_lower_bound`, and which is therefore optimal, it is
        returned, randomly rotated, without a search: equally spaced directions for d = 2, the regular simplex for
        n <= d + 1 and the cross-polytope for n = 2 d (full space), orthonormal rows for n <= d (half space).
        `known=False` searches all the same.

        Time on one core: a proven optimum, such as 100 classes in d = 512, 10 ms; 32 points in d = 3 or 100 in d = 64,
        0.1 s; 1000 in d = 64, 10 s; 1000 in d = 512, 40 s, which a looser tolerance shortens.

    Args:
        n: directions, at least 2.
        d: their dimension.
        s: exponent of the Riesz kernel, any number >= 0; a large one approaches the best packing.
        distance: `"euclidean"` or `"angular"`.
        space: `"full"`, or `"half"` for n lines.
        seed: of the random starts and rotations; the global random state is neither read nor changed.
        restarts: random starts; by default 8, fewer from n^2 d of a hundred thousand on, and 1 above a million.
        tolerance: stop once another step promises to raise the mean distance (the power mean that the energy stands
            for, the geometric one for s = 0) by less than this fraction; by default 1e-15, or 1e-9 for more than 1024
            coordinates n d.
        max_iterations: of each start.
        known: whether to return a known optimum without a search.

    Returns:
        `(n, d)` float64 on the CPU, rows of length one.

    Warns:
        UserWarning: the best start stopped before the tolerance.

    Raises:
        MHEError: n or d too small or not an integer, n distinct directions do not exist (d = 1), an option that
            `Potential` does not take, a setting out of range, or energies beyond the range of float64.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, section 3; the solver's are
    named in `hf_mhe.energy.solver.lbfgs`.
    """
    n, d = check_shape(n, d)
    potential = Potential(s, distance, space)
    seed = check_integer("seed", seed, at_least=-(1 << 63), at_most=(1 << 63) - 1)
    if restarts is None:
        restarts = max(1, min(_RESTARTS, _RESTARTS_WORK // (n * n * d)))
    restarts = check_integer("restarts", restarts, at_least=1)
    max_iterations = check_integer("max_iterations", max_iterations, at_least=1)
    small = n * d <= _SMALL_COORDINATES
    if tolerance is None:
        tolerance = _TOLERANCE_SMALL if small else _TOLERANCE_LARGE
    else:
        check_number("tolerance", tolerance, above=0)
    bound = lower_bound(n, d, potential)
    if bound == math.inf and d == 1:
        raise MHEError(f"{n} distinct directions do not exist in d = 1 ({space} space): d must be at least 2")
    if bound == math.inf:
        raise _out_of_range(potential, n)

    generator = torch.Generator().manual_seed(seed)
    objective = _MeanDistance(potential, n)
    goal = objective.of_energy(bound) + _ATTAINED
    if known or d == 1:
        for points in _known_optima(n, d, potential):
            if objective(points)[0] <= goal:
                frame = torch.linalg.qr(_normal(d, points.shape[1], generator)).Q
                return torch.nn.functional.normalize(points @ frame.T, dim=1)

    budget = _Budget(max_iterations, _HISTORY_SMALL if small else _HISTORY_LARGE)
    # The starts are compared at the looser tolerance, and only the best of them is taken to the last digit.
    compare = tolerance if restarts == 1 else max(tolerance, _TOLERANCE_LARGE)
    best: Minimum | None = None
    for _ in range(restarts):
        start = _normal(n, d, generator)
        start /= torch.linalg.vector_norm(start, dim=1, keepdim=True)
        found = _descend(objective, _gentle_start(potential, start, budget), compare, budget)
        if best is None or found.value < best.value:
            best = found
        if best.value <= goal:
            break  # nothing lies lower
    assert best is not None
    if best.converged and tolerance < compare:
        best = _descend(objective, best.point, tolerance, budget)
    if not best.converged:
        warnings.warn(
            f"minimize_energy(n={n}, d={d}, {potential.describe()}) stopped after {best.iterations} iterations, where "
            f"another step promised {best.decrement:.1e} of the mean distance (tolerance {tolerance:.1e}): raise "
            "max_iterations or tolerance",
            stacklevel=3,  # past the no_grad wrapper
        )
    return best.point


def _out_of_range(potential: Potential, n: int) -> MHEError:
    return MHEError(f"s={potential.s:g} is too large for n={n}: the energy leaves the range of float64")


# On the CPU, whatever the program's default device is.
def _normal(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, d, generator=generator, dtype=torch.float64, device="cpu")


def _identity(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64, device="cpu")


def _known_optima(n: int, d: int, potential: Potential) -> Iterator[Tensor]:
    # Candidates, `(n, k)` with k <= d; each is checked against the bound before it is returned.
    if d == 2:
        turn = math.pi if potential.space == "half" else 2 * math.pi
        angle = torch.arange(n, dtype=torch.float64, device="cpu") * (turn / n)
        yield torch.stack([angle.cos(), angle.sin()], dim=1)
    if n <= d:
        yield _identity(n)
    if n <= d + 1:
        # Corners of the simplex in the hyperplane orthogonal to (1, ..., 1), in a basis of it.
        columns = _identity(n)
        columns[:, 0] = 1
        yield torch.nn.functional.normalize(torch.linalg.qr(columns).Q[:, 1:], dim=1)
    if n == 2 * d:
        axes = _identity(d)
        yield torch.cat([axes, -axes])


# Note [Logarithm of the mean]
# What is minimized is `log(E) / s`, E the mean energy: minus the logarithm of a power mean of the distances. It has
# the same minima as E, tends to the energy of s = 0 as s goes to 0, and its changes are relative changes of distance,
# so that one tolerance means one thing for every s. For a large s its gradient stays of order one where that of E
# explodes.
class _MeanDistance:
    """The objective: `(value, tangent gradient)` of `log(E) / s`, for s = 0 of E itself, at unit rows.

    With `ties = k` the free rows stand for themselves, and the first k also for the points opposite to them.
    """

    def __init__(self, potential: Potential, n: int, ties: int = 0) -> None:
        self.potential, self.n, self.ties = potential, n, ties

    def all_rows(self, free: Tensor) -> Tensor:
        return torch.cat([free, -free[: self.ties]]) if self.ties else free

    def of_energy(self, energy: float) -> float:
        if self.potential.s == 0 or not 0 < energy < math.inf:
            return energy if energy else -math.inf
        return math.log(energy) / self.potential.s

    def slope(self, energy: float) -> float:
        """Derivative of `of_energy`."""
        return 1.0 if self.potential.s == 0 else 1 / (self.potential.s * energy) if energy else math.inf

    def __call__(self, free: Tensor) -> tuple[float, Tensor]:
        rows = self.all_rows(free)
        pairs = walk(rows, rows, self.potential, gradient=True)
        energy = float(self.potential.mean_of(pairs.value, self.n))
        assert pairs.gradient is not None
        gradient = pairs.gradient.mul_(self.potential.scale_of(self.n, "mean") * self.slope(energy))
        if self.ties:
            gradient, mirrored = gradient[: len(free)], gradient[len(free) :]
            gradient[: self.ties] -= mirrored
        return self.of_energy(energy), project_(gradient, free)


class _Budget(NamedTuple):
    """What the solver may spend: steps of each descent, and remembered steps."""

    max_iterations: int
    history: int


def _gentle_start(potential: Potential, start: Tensor, budget: _Budget) -> Tensor:
    # The energies of a large exponent span too many orders of magnitude at a random start, so gentler ones come
    # first, loosely.
    s = potential.s
    exponents: list[float] = []
    while s > _GENTLE_EXPONENT:
        s = max(_GENTLE_EXPONENT, s / 2)
        exponents.insert(0, s)
    for exponent in exponents:
        gentle = _MeanDistance(dataclasses.replace(potential, s=exponent), len(start))
        start = minimize_on_spheres(gentle, start, tolerance=1e-4, **budget._asdict()).point
    return start


def _descend(objective: _MeanDistance, start: Tensor, tolerance: float, budget: _Budget) -> Minimum:
    potential = objective.potential
    if not math.isfinite(objective(start)[0]):
        raise _out_of_range(potential, objective.n)
    found = minimize_on_spheres(objective, start, tolerance=tolerance, **budget._asdict())
    if potential.rho.slope_at_antipodes and potential.space == "full":
        return _settle_opposite_pairs(objective, found, tolerance, budget)
    return found


# Note [Opposite points]
# In full space the angular energy of a pair has a kink, like |x|, where the two points are opposite, because no arc is
# longer than pi; and minima like to sit there (n = 2, the cross-polytope, 32 points for s = 0). L-BFGS goes to the
# kink, but what it learns there is not curvature. So nearly opposite points are tied, and the tied problem, which is
# smooth, is solved. At its minimum the other points pull both ends of a pair with the same force g, and
# the kink holds the pair together if |g| is at most the pair's own slope: the first-order condition of the kinked
# problem. If it fails, the pair is let go and the search goes on.
def _settle_opposite_pairs(objective: _MeanDistance, found: Minimum, tolerance: float, budget: _Budget) -> Minimum:
    potential, n = objective.potential, objective.n
    for _ in range(_TIE_ROUNDS):
        order, ties = _opposite_first(found.point)
        if not ties:
            break
        tied = _MeanDistance(potential, n, ties)
        settled = minimize_on_spheres(tied, found.point[order], tolerance=tolerance, **budget._asdict())
        if settled.value > found.value + tolerance:
            break
        point = tied.all_rows(settled.point)
        value, force = objective(point)
        iterations = found.iterations + settled.iterations
        pulls = torch.linalg.vector_norm(force[n - ties :], dim=1)
        energy = math.exp(value * potential.s) if potential.s else 0.0
        hold = 2 * potential.scale_of(n, "mean") * objective.slope(energy) * _slope_at_antipodes(potential)
        found = Minimum(point, value, settled.decrement, iterations, settled.converged)
        if float(pulls.max()) <= hold:
            break
        loose = minimize_on_spheres(objective, point, tolerance=tolerance, **budget._asdict())
        found = loose._replace(iterations=iterations + loose.iterations)
    return found


def _slope_at_antipodes(potential: Potential) -> float:
    # Of a pair's energy, by how far its angle is short of pi.
    s, rho = potential.s, potential.rho
    return (s or 1.0) * rho.at_antipodes ** (-s - 1) * rho.slope_at_antipodes


def _opposite_first(point: Tensor) -> tuple[Tensor, int]:
    # Rows to keep, those with a partner first: nearly opposite points that are each other's most opposite one.
    partner = torch.cat([(part @ point.T).argmin(dim=1) for part in point.split(1024)])
    rows = torch.arange(len(point), device=point.device)
    chord = torch.linalg.vector_norm(point + point[partner], dim=1)
    paired = (partner[partner] == rows) & (chord < _TIE_CHORD)
    first = rows[paired & (rows < partner)]
    return torch.cat([first, rows[~paired]]), len(first)

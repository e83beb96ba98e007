"""Lower bound of the angular energy in full space: the best mixture of inequalities that every configuration obeys."""

from __future__ import annotations

import math

import numpy as np

# Note [proof of the angular bound]
# The angular f, as a function of the cosine t, is concave near t = −1, so the universal bound (levenshtein.py) does
# not apply. But each of these functions φ has a known lower bound m of its mean over the n(n−1) ordered pairs:
# - the constant 1: m = 1.
# - the Gegenbauer polynomials P_k, k >= 1, with P_k(1) = 1: m = −1/(n−1), because Σ_{i,j} P_k(t_ij) >= 0 with the n
#   pairs i = j included (Schoenberg 1942; Delsarte, Goethals, Seidel 1977).
# - 1 − 2θ/π: θ_ij/π is the probability that a random hyperplane through the origin separates i and j, and a hyperplane
#   separates at most ⌊n/2⌋⌈n/2⌉ of the n(n−1)/2 pairs (Crofton's argument; the bound is Fejes Tóth's and Sperling's,
#   "Lösung einer elementargeometrischen Frage von Fejes Tóth", Arch. Math. 11 (1960)).
# - the euclidean potential of the same s: m = its universal bound. It has the singularity of f at t = 1, which
#   polynomials of moderate degree follow badly when n is large for d.
# So if h = Σ y_j φ_j <= f on [−1, 1) with y_j >= 0 (the constant's is free), the mean of f is at least Σ y_j m_j.
# The best y is a linear program (Yudin 1993, with more functions than polynomials). Whatever the solver returns
# becomes a proof afterwards: y is clipped to its signs, max(h − f) is measured on a fine grid with its local maxima
# resolved, and subtracted.
#
# Independently of the program, f is convex and decreasing in θ, so f(largest possible mean angle) is a bound; it
# is sharp for n = 2 and n = 3, and stands alone if the solver finds nothing.

_MAX_DEGREE = 24
_COARSE = 300
_FINE = 4000
_ROUNDS = 3
_LARGEST_S = 30.0


def largest_mean_angle(n: int) -> float:
    """No n directions have a mean angle over pairs above this, in radians (Note [proof of the angular bound])."""
    return math.pi * 2 * (n // 2) * ((n + 1) // 2) / (n * (n - 1))


def _riesz(rho: np.ndarray, s: float, unit: float) -> np.ndarray:
    # f_s(ρ), for s > 0 in units of f_s(unit), which keeps it in range of a float.
    return -np.log(rho) if s == 0 else (unit / rho) ** s


class _Program:
    """The functions φ_j and f over the angle, in units in which the typical pair is about 1."""

    def __init__(self, d: int, s: float, degree: int, unit: float) -> None:
        self.d, self.s, self.degree, self.unit = d, s, degree, unit

    def columns(self, theta: np.ndarray) -> np.ndarray:
        """(columns, len(theta)): P_0 … P_degree, 1 − 2θ/π, the euclidean potential."""
        t = np.cos(theta)
        rows = [np.ones_like(t), t]
        for k in range(1, self.degree):
            rows.append(((2 * k + self.d - 2) * t * rows[k] - k * rows[k - 1]) / (k + self.d - 2))
        near = self.s <= _LARGEST_S
        chord = _riesz(2 * np.sin(theta / 2), self.s, self.unit) if near else np.zeros_like(t)
        return np.array([*rows[: self.degree + 1], 1 - 2 * theta / math.pi, chord])

    def target(self, theta: np.ndarray) -> np.ndarray:
        """f at the angles."""
        return _riesz(theta, self.s, self.unit)

    def excess(self, y: np.ndarray, fine: np.ndarray) -> tuple[float, np.ndarray]:
        """max(h − f, 0) over the grid, with its local maxima resolved on one 50 times finer; and where these lie."""

        def gap(theta: np.ndarray) -> np.ndarray:
            return y @ self.columns(theta) - self.target(theta)

        on_grid = gap(fine)
        padded = np.concatenate(([-np.inf], on_grid, [-np.inf]))
        peaks = np.flatnonzero((on_grid >= padded[:-2]) & (on_grid >= padded[2:]))
        low, high = fine[np.maximum(peaks - 1, 0)], fine[np.minimum(peaks + 1, len(fine) - 1)]
        theta = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 101)
        around = gap(theta.ravel()).reshape(theta.shape)
        best = around.argmax(axis=1)
        return max(0.0, float(on_grid.max()), float(around.max())), theta[np.arange(len(peaks)), best]


def angular_bound(n: int, d: int, s: float, *, degree: int, euclidean_bound: float) -> float:
    """Lower bound of the mean angular energy of n directions in R^d, d >= 3 (Note [proof of the angular bound]).

    `degree` is the strength of the design that n points could be, `largest_tau`; polynomials a little beyond it still
    help. `euclidean_bound` is a lower bound of the euclidean mean energy of the same s.
    """
    from scipy.optimize import linprog

    widest = largest_mean_angle(n)
    unit = scale = 1.0
    if s > 0:
        if not 0.0 < euclidean_bound < math.inf:  # too large for a float, as the numbers of the program would be
            return widest**-s
        # The angle of a typical pair's energy: where n is large for d, and s is large, only near pairs count.
        unit = 2 * math.asin(min(1.0, 0.5 * euclidean_bound ** (-1 / s)))
        scale = unit**-s
    best = float(_riesz(np.array(widest), s, unit))

    # Angles below `smallest` need no grid. Up to _LARGEST_S it is 1e-6: the polynomials are constant there, and
    # y ρ^(−s) − θ^(−s) increases with θ if 1 − y >= 1e-12 s. Above, the euclidean column is left out (y = 0), and
    # `smallest` is where f is 1e200 times a typical pair's, which no polynomial of the solution comes near.
    with_euclidean = s <= _LARGEST_S
    smallest = 1e-6 if with_euclidean else unit * 10.0 ** (-200 / s)
    upper = 1 - 1e-12 * max(s, 1.0) if with_euclidean else 0.0
    euclidean = euclidean_bound / scale if with_euclidean else 0.0

    degree = min(degree + 5, _MAX_DEGREE)
    program = _Program(d, s, degree, unit)
    floor = np.array([1.0] + [-1 / (n - 1)] * degree + [1 - 2 * widest / math.pi, euclidean])
    limits = [(None, None)] + [(0, None)] * (degree + 1) + [(0, upper)]
    near = np.geomspace(smallest, max(smallest, math.pi / _FINE), 200)
    fine = np.concatenate((near, np.linspace(near[-1], math.pi, _FINE)[1:]))
    theta = np.concatenate((near[::10], np.linspace(near[-1], math.pi, _COARSE)[1:]))
    # A new point alone halves the interval in which h exceeds f; a ladder of them about it closes it in two rounds.
    steps = math.pi / _COARSE / 5.0 ** np.arange(1, 7)
    ladder = np.concatenate(([0.0], steps, -steps))
    for _ in range(_ROUNDS):
        right = program.target(theta)
        # Each inequality at the size of its own right side: near θ = 0 that is many orders above the rest.
        weight = 1 / np.maximum(1.0, np.abs(right))
        solution = linprog(
            -floor,
            A_ub=program.columns(theta).T * weight[:, None],
            b_ub=right * weight,
            bounds=limits,
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if solution.x is None:
            break
        y = solution.x
        y[1:] = np.maximum(y[1:], 0.0)
        y[-1] = min(y[-1], upper)
        excess, touching = program.excess(y, fine)
        best = max(best, float(y @ floor) - excess)
        if excess <= 1e-9:
            break
        theta = np.concatenate((theta, (touching[:, None] + ladder).clip(smallest, math.pi).ravel()))
    return best * scale

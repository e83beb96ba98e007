"""The universal lower bound of Boyvalenkov et al., by Levenshtein's quadrature, for points and for lines."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# Note [proof of the lower bound]
# Let p_0, p_1, … be the Jacobi polynomials of the space (Gegenbauer on the sphere, in t = c; Jacobi ((d−3)/2, −1/2) on
# the projective space of lines, in t = 2 c² − 1), so that Σ_{i,j} p_k(t_ij) >= 0 for every configuration. If h <= f
# on [−1, 1) is a polynomial whose coefficients of p_1, p_2, … are nonnegative, then
#     Σ_{i≠j} f >= Σ_{i≠j} h = Σ_{i,j} h − N h(1) >= N² h_0 − N h(1),                                              (1)
# with h_0 its mean (Delsarte; Yudin 1993). Take for h the Hermite interpolant of f at the nodes α_i of the quadrature
#     h_0 = h(1)/N + Σ ρ_i h(α_i), exact to degree τ                                                (Levenshtein 1992)
# Then the right side of (1) is N² Σ ρ_i f(α_i), and h is as (1) asks for whenever f is absolutely monotone
# (all derivatives >= 0; a constant does not matter, so log(1/ρ) is included) and N >= D(d, τ), the bound of Delsarte,
# Goethals and Seidel: Boyvalenkov, Dragnev, Hardin, Saff, Stoyanova, "Universal lower bounds for potential energy of
# spherical codes", Constr. Approx. 44 (2016); and "Energy bounds for codes in polynomial metric spaces", Anal. Math.
# Phys. 9 (2019), for the projective space.
#
# τ = 2k − 1 may be capped, because every larger N is covered too. With the kernels K_j(t) = Σ_{i<=j} p_i(1) p_i(t) of
# orthonormal p_i, the α_i are the zeros of q = K_k + a K_{k−1}, 1 + a = (K_k(1) − K_{k−1}(1)) / (N − K_{k−1}(1)). This
# is positive for N > K_{k−1}(1) = D(d, 2k − 2), so the coefficients of q are. The K_j are orthogonal for the measure
# times 1 − t, so products of fewer factors t − α_i have positive coefficients in the K_j, hence in the p_j (Cohn,
# Kumar, "Universally optimal distribution of points on spheres", J. AMS 20 (2007), section 3). Newton's form of h is a
# sum of products of two of these with divided differences of f, which are nonnegative.
#
# Absolutely monotone are:
# - in full space, euclidean: (2 − 2t)^(−s/2) and −log(2 − 2t)/2 on [−1, 1);
# - in half space, F(c) = f(c) + f(−c) as a function of c², for both distances: arccos c = π/2 − arcsin c, and arcsin
#   has nonnegative Taylor coefficients, so f has, and F keeps the even ones, twice. The 2n points of half space are n
#   lines, and the energy of n lines under F, plus the fixed n pairs of f(−1), is theirs.
# The bound is attained by simplices (τ = 1), cross-polytopes (τ = 3), the icosahedron (τ = 5), the roots of E8 (τ = 7)
# and other sharp codes; in half space by orthonormal rows (τ = 0), equiangular tight frames (τ = 1) and others. Degree
# 1 alone is f(ρ² = 2n/(n−1)), and, in half space, the bound by Σ c² >= n²/d.
#
# In full space the angular f is concave near c = −1: see hf_mhe/energy/sphere/linear_program.py.
# For d = 2, f is convex and decreasing in the arc for both distances, so n equally spaced directions are optimal
# (Brauchart, Hardin, Saff, "The Riesz energy of the Nth roots of unity", Bull. LMS 41 (2009)); 2n equally
# spaced points are antipodal, which settles half space too.

# Levenshtein's quadrature has k or k + 1 nodes; 64 of them resolve 8,000 points on the sphere in R^3, and more
# cost time for less and less.
_MAX_NODES = 64


def riesz(rho: np.ndarray, s: float) -> np.ndarray:
    """f_s(ρ) elementwise in float64: ρ^(−s), or log(1/ρ) where s = 0."""
    return -np.log(rho) if s == 0 else rho**-s


def design_bound(d: int, tau: int, *, projective: bool) -> int:
    """D(d, τ): the fewest points, or lines, that a τ-design of R^d can have (Delsarte, Goethals, Seidel 1977)."""
    if projective:
        return math.comb(d + tau - 1, tau)
    k, odd = divmod(tau, 2)
    return 2 * math.comb(d + k - 1, k) if odd else math.comb(d + k - 1, k) + (math.comb(d + k - 2, k - 1) if k else 0)


def largest_tau(n: int, d: int, *, projective: bool) -> int:
    """The largest τ with D(d, τ) <= n, or the odd cap 2 · 64 − 1 where it is larger than that."""
    cap = 2 * _MAX_NODES - 1
    tau = 0
    while tau <= cap and design_bound(d, tau + 1, projective=projective) <= n:
        tau += 1
    return min(tau, cap)


def _jacobi_matrix(k: int, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    # J_k of the orthonormal polynomials of (1−t)^alpha (1+t)^beta, and p_0(1), …, p_{k−1}(1) for total mass 1.
    j = np.arange(k, dtype=np.float64)
    total = 2 * j + alpha + beta
    diagonal = np.empty(k)
    diagonal[0] = (beta - alpha) / (alpha + beta + 2)
    diagonal[1:] = (beta**2 - alpha**2) / (total[1:] * (total[1:] + 2))
    square = np.empty(k)  # of the off-diagonal; [0] is not used
    if k > 1:
        square[1] = 4 * (1 + alpha) * (1 + beta) / ((2 + alpha + beta) ** 2 * (3 + alpha + beta))
    i, t = j[2:], total[2:]
    square[2:] = 4 * i * (i + alpha) * (i + beta) * (i + alpha + beta) / (t**2 * (t + 1) * (t - 1))
    off = np.sqrt(square[1:])
    at_one = np.ones(k)
    for m in range(1, k):
        before = off[m - 2] * at_one[m - 2] if m > 1 else 0.0
        at_one[m] = ((1 - diagonal[m - 1]) * at_one[m - 1] - before) / off[m - 1]
    return np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1), at_one


def _gauss_without_mass(k: int, alpha: float, beta: float, mass: float) -> tuple[np.ndarray, np.ndarray]:
    # Gauss quadrature with k nodes of the Jacobi measure (total 1) minus `mass` at t = 1, from its Gram matrix G and
    # the matrix M of multiplication by t, both in the Jacobi measure's own orthonormal polynomials: M v = α G v.
    matrix, at_one = _jacobi_matrix(k, alpha, beta)
    outer = mass * np.outer(at_one, at_one)
    cholesky = np.linalg.cholesky(np.eye(k) - outer)
    half = np.linalg.solve(cholesky, matrix - outer)
    nodes, vectors = np.linalg.eigh(np.linalg.solve(cholesky, half.T))
    moments = np.eye(k)[0] - mass * at_one
    weights = (np.linalg.solve(cholesky.T, vectors).T @ moments) ** 2
    return nodes, weights


def levenshtein_quadrature(n: int, d: int, *, projective: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Levenshtein's 1/n-quadrature: nodes (k,) in [−1, 1) and weights (k,), normalised to sum 1, in float64.

    For every polynomial h of degree <= `largest_tau(n, d)`, the mean of h over the uniform measure is
    h(1)/n + (1 − 1/n) Σ w_i h(α_i). On the sphere in R^d (d >= 3) in t = c, or, `projective`, in t = 2 c² − 1.

    Source: Levenshtein, "Designs as maximum codes in polynomial metric spaces", Acta Appl. Math. 29 (1992).
    """
    alpha = (d - 3) / 2
    beta = -0.5 if projective else alpha
    k, odd = divmod(largest_tau(n, d, projective=projective), 2)
    if odd:
        nodes, weights = _gauss_without_mass(k + 1, alpha, beta, 1 / n)
    elif k:
        # A node at −1: Gauss quadrature for (1 + t) times the measure, which is Jacobi with beta + 1.
        first = 1 + (beta - alpha) / (alpha + beta + 2)  # the mean of 1 + t
        nodes, weights = _gauss_without_mass(k, alpha, beta + 1, 2 / (first * n))
        weights = weights * first / (1 + nodes)
        nodes = np.concatenate(([-1.0], nodes))
        weights = np.concatenate(([max(0.0, 1 - 1 / n - weights.sum())], weights))
    else:
        nodes, weights = np.array([-1.0]), np.array([1.0])
    return np.clip(nodes, -1.0, None), weights / weights.sum()


def mean_over_points(n: int, d: int, s: float, of_cosine: Callable[[np.ndarray], np.ndarray]) -> float:
    """The universal bound of the mean of f_s over pairs of n points, for d >= 3 and f absolutely monotone in c."""
    nodes, weights = levenshtein_quadrature(n, d)
    return float(weights @ riesz(of_cosine(nodes), s))


def mean_over_lines(n: int, d: int, s: float, of_cosine: Callable[[np.ndarray], np.ndarray]) -> float:
    """The same of F(c) = f(c) + f(−c) over pairs of n lines, for F absolutely monotone in c²."""
    nodes, weights = levenshtein_quadrature(n, d, projective=True)
    c = np.sqrt((1 + nodes) / 2)
    return float(weights @ (riesz(of_cosine(c), s) + riesz(of_cosine(-c), s)))

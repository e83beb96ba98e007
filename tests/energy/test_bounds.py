"""The lower bound: below every configuration, and attained where the optimum is known."""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from hf_mhe.energy.reference.bounds import energy_lower_bound
from hf_mhe.energy.reference.expectation import expected_energy
from hf_mhe.energy.sphere.levenshtein import design_bound, largest_tau, levenshtein_quadrature
from hf_mhe.errors import MHEError
from tests.oracle import DISTANCES, SPACES, THOMSON, VARIANTS, directions, quick_energy

EXPONENTS = (0.0, 0.5, 1.0, 2.0, 3.0)


def mean_energy(points: np.ndarray, s: float, distance: str, space: str) -> float:
    return float(quick_energy(torch.from_numpy(points), s, distance, space))


def simplex(n: int) -> np.ndarray:
    return np.eye(n) - 1 / n


def cross_polytope(d: int) -> np.ndarray:
    return np.concatenate((np.eye(d), -np.eye(d)))


def icosahedron() -> np.ndarray:
    golden = (1 + math.sqrt(5)) / 2
    rows = np.array([[0, a, b * golden] for a in (1, -1) for b in (1, -1)])
    return np.concatenate([np.roll(rows, shift, axis=1) for shift in range(3)])


def integer_roots(d: int) -> np.ndarray:
    """±e_i ± e_j: the roots of D_d (24 of them for d = 4, 112 for d = 8)."""
    rows = []
    for i, j in itertools.combinations(range(d), 2):
        for a, b in itertools.product((1, -1), repeat=2):
            row = np.zeros(d)
            row[i], row[j] = a, b
            rows.append(row)
    return np.array(rows)


def e8_roots() -> np.ndarray:
    signs = np.array(list(itertools.product((0.5, -0.5), repeat=8)))
    return np.concatenate((integer_roots(8), signs[(signs < 0).sum(axis=1) % 2 == 0]))


def one_of_each_pair(points: np.ndarray) -> np.ndarray:
    """One point of every antipodal pair: the half-space neurons whose mirrored set is `points`."""
    first = [row[np.flatnonzero(np.abs(row) > 1e-9)[0]] > 0 for row in points]
    return points[np.array(first)]


def twenty_eight_lines() -> np.ndarray:
    """The 28 equiangular lines of R^7: permutations of (3, 3, −1, −1, −1, −1, −1, −1), cosines ±1/3."""
    rows = -np.ones((28, 8))
    for row, (i, j) in zip(rows, itertools.combinations(range(8), 2), strict=True):
        row[[i, j]] = 3
    return rows


def descend(n: int, d: int, s: float, distance: str, space: str, seed: int) -> np.ndarray:
    """A good configuration by plain gradient descent on the sphere, with a step that shrinks when it fails."""
    points = directions(torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d))))

    def energy_and_gradient(points: torch.Tensor) -> tuple[float, torch.Tensor]:
        leaf = points.clone().requires_grad_()
        energy = quick_energy(leaf, s, distance, space)
        return float(energy.detach()), torch.autograd.grad(energy, leaf)[0]

    (energy, gradient), step = energy_and_gradient(points), 1.0
    for _ in range(250):
        trial = directions(points - step * gradient / gradient.abs().max().clamp(min=1e-12))
        trial_energy, trial_gradient = energy_and_gradient(trial)
        if trial_energy < energy:
            points, energy, gradient, step = trial, trial_energy, trial_gradient, step * 1.2
        else:
            step *= 0.5
    return points.numpy()


@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize(
    ("n", "d"), [(2, 2), (2, 7), (3, 2), (3, 5), (4, 3), (10, 9), (10, 256), (65, 64), (100, 384)]
)
def test_simplex_attains_it(n: int, d: int, s: float) -> None:
    """The regular simplex, optimal for n <= d + 1 in euclidean full space, does not lie on the bound."""
    bound = energy_lower_bound(n, d, s, distance="euclidean", space="full")
    assert bound == pytest.approx(mean_energy(simplex(n), s, "euclidean", "full"), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize("d", [2, 3, 4, 17, 64])
def test_cross_polytope_attains_it(d: int, s: float) -> None:
    """The cross-polytope, optimal for n = 2 d in euclidean full space, does not lie on the bound."""
    bound = energy_lower_bound(2 * d, d, s, distance="euclidean", space="full")
    assert bound == pytest.approx(mean_energy(cross_polytope(d), s, "euclidean", "full"), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize(("n", "d"), [(2, 2), (2, 9), (3, 3), (7, 8), (20, 20), (64, 300)])
def test_orthonormal_rows_attain_it_in_half_space(n: int, d: int, s: float, distance: str) -> None:
    """Orthonormal rows, optimal for n <= d in half space for both distances, do not lie on the bound."""
    bound = energy_lower_bound(n, d, s, distance=distance, space="half")
    assert bound == pytest.approx(mean_energy(np.eye(d)[:n], s, distance, "half"), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize("points", [icosahedron(), e8_roots()], ids=["icosahedron", "E8 roots"])
def test_sharp_codes_attain_it(points: np.ndarray, s: float) -> None:
    """A universally optimal code (Cohn and Kumar 2007, table 1) does not lie on the bound."""
    bound = energy_lower_bound(*points.shape, s, distance="euclidean", space="full")
    assert bound == pytest.approx(mean_energy(points, s, "euclidean", "full"), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize(
    ("lines", "d"),
    [
        (one_of_each_pair(icosahedron()), 3),
        (one_of_each_pair(integer_roots(4)), 4),
        (one_of_each_pair(e8_roots()), 8),
        (twenty_eight_lines(), 7),
    ],
    ids=["6 diagonals", "12 lines of D4", "120 lines of E8", "28 equiangular lines"],
)
def test_sharp_sets_of_lines_attain_it_in_half_space(lines: np.ndarray, d: int, s: float, distance: str) -> None:
    """A universally optimal set of lines does not lie on the half-space bound, for both distances."""
    bound = energy_lower_bound(len(lines), d, s, distance=distance, space="half")
    assert bound == pytest.approx(mean_energy(lines, s, distance, "half"), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize("d", [2, 3, 50])
def test_two_and_three_neurons_attain_the_angular_bound(d: int, s: float) -> None:
    """Two opposite neurons, or three at 120 degrees, do not lie on the angular bound in full space."""
    for n in (2, 3):
        bound = energy_lower_bound(n, d, s, distance="angular", space="full")
        assert bound == pytest.approx(mean_energy(simplex(n), s, "angular", "full"), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize(
    "points",
    [cross_polytope(3), cross_polytope(8), icosahedron(), e8_roots()],
    ids=["octahedron", "16", "icosahedron", "E8"],
)
def test_angular_bound_is_close_at_sharp_codes(points: np.ndarray, s: float) -> None:
    """The linear program is wrong: it exceeds a code's angular energy, or stays more than 1e-6 below a sharp one."""
    energy = mean_energy(points, s, "angular", "full")
    bound = energy_lower_bound(*points.shape, s, distance="angular", space="full")
    assert bound <= energy + 1e-12
    assert bound == pytest.approx(energy, rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("s", EXPONENTS)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 12, 33])
def test_circle_is_exact(n: int, s: float, distance: str) -> None:
    """In the plane, equally spaced directions (spread over a half circle in half space) do not lie on the bound."""
    for space, turn in (("full", 2 * math.pi), ("half", math.pi)):
        angle = turn * np.arange(n) / n
        points = np.stack((np.cos(angle), np.sin(angle)), axis=1)
        bound = energy_lower_bound(n, 2, s, distance=distance, space=space)
        assert bound == pytest.approx(mean_energy(points, s, distance, space), rel=1e-9, abs=1e-9)


def test_one_dimension() -> None:
    """In one dimension there are two directions: a third neuron must coincide with one, at infinite energy."""
    for s, distance in itertools.product(EXPONENTS, DISTANCES):
        opposite = mean_energy(np.array([[1.0], [-1.0]]), s, distance, "full")
        assert energy_lower_bound(2, 1, s, distance=distance, space="full") == pytest.approx(opposite, rel=1e-12)
        assert energy_lower_bound(3, 1, s, distance=distance, space="full") == math.inf
        assert energy_lower_bound(2, 1, s, distance=distance, space="half") == math.inf


@pytest.mark.parametrize(("n", "energy"), THOMSON.items())
def test_below_the_thomson_energies_and_close(n: int, energy: float) -> None:
    """The bound exceeds the best known energy of charges on a sphere, or is more than 0.6 percent below it."""
    bound = energy_lower_bound(n, 3, 1.0, distance="euclidean", space="full") * n * (n - 1) / 2
    assert bound <= energy * (1 + 1e-9)
    assert bound >= energy * 0.994


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (4, 3), (5, 3), (7, 3), (9, 4), (13, 5), (11, 7), (24, 4)])
def test_no_descent_gets_below_it(n: int, d: int, s: float, distance: str, space: str) -> None:
    """A configuration lies below the bound; or the bound is so low that a descent stays far above."""
    bound = energy_lower_bound(n, d, s, distance=distance, space=space)
    random = np.random.default_rng(n).standard_normal((n, d))
    assert bound < mean_energy(random, s, distance, space)
    energy = mean_energy(descend(n, d, s, distance, space, seed=n), s, distance, space)
    assert bound <= energy + 1e-9 * abs(energy)
    # Of the way from the bound to a random draw (or to a far better one, where the draw diverges), little is left.
    reference = expected_energy(n, d, s, distance=distance, space=space)
    if math.isfinite(reference):
        assert energy - bound < 0.2 * (reference - bound)


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
def test_large_shapes(s: float, distance: str, space: str) -> None:
    """A real layer's shape gives no number, takes long, or gets no more than the bound by the mean of ρ²."""
    energy_lower_bound(50, 20, s, distance=distance, space=space)  # the first call pays for importing scipy
    for n, d in [(30522, 384), (4096, 1024), (128, 9), (64, 27), (10, 256), (1536, 3), (10**6, 10**6), (1000, 2)]:
        start = time.process_time()
        bound = energy_lower_bound(n, d, s, distance=distance, space=space)
        assert time.process_time() - start < 1.0
        assert math.isfinite(bound)
        assert bound < expected_energy(n, d, s, distance=distance, space=space)
        square = 2 * n / (n - 1)
        simplex_bound = -0.5 * math.log(square) if s == 0 else square ** (-s / 2)
        if (distance, space) == ("euclidean", "full"):
            assert bound > simplex_bound if n > d + 1 else bound == pytest.approx(simplex_bound, rel=1e-12)


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
def test_monotone_in_n_and_d(s: float, distance: str, space: str) -> None:
    """The optimum rises with n (averaging over subsets) and falls with d (inclusion); the bound does not follow."""
    options = {"distance": distance, "space": space}
    slack = 1e-7  # the linear program's own rounding
    by_n = [energy_lower_bound(n, 5, s, **options) for n in range(2, 24)]
    by_d = [energy_lower_bound(25, d, s, **options) for d in range(2, 16)]
    assert all(b >= a - slack for a, b in itertools.pairwise(by_n))
    assert all(b <= a + slack for a, b in itertools.pairwise(by_d))


@pytest.mark.parametrize("projective", [False, True], ids=["sphere", "lines"])
@pytest.mark.parametrize(
    ("n", "d"), [(2, 3), (5, 3), (6, 3), (7, 4), (50, 3), (300, 17), (1536, 3), (30522, 384), (10**6, 3)]
)
def test_quadrature_is_exact_to_its_degree(n: int, d: int, projective: bool) -> None:
    """The nodes and weights under the bound are not the quadrature that its proof integrates with.

    Moments of the measure are those of t = 2B − 1, B ~ Beta(a, b), from E B^m = Π (a + j) / (a + b + j).
    """
    nodes, weights = levenshtein_quadrature(n, d, projective=projective)
    a, b = (0.5, (d - 1) / 2) if projective else ((d - 1) / 2, (d - 1) / 2)
    assert (nodes >= -1).all()
    assert (nodes < 1).all()
    assert (weights >= 0).all()
    moment = 1.0
    for m in range(1, min(largest_tau(n, d, projective=projective), 40) + 1):
        moment *= (a + m - 1) / (a + b + m - 1)
        assert 1 / n + (1 - 1 / n) * (weights @ ((1 + nodes) / 2) ** m) == pytest.approx(moment, rel=1e-9)


@pytest.mark.parametrize("s", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize(
    ("n", "d"), [(5, 3), (7, 3), (11, 3), (9, 4), (11, 4), (23, 5), (100, 6), (60, 17), (500, 30)]
)
def test_certificate_of_the_universal_bound(n: int, d: int, s: float) -> None:
    """The proof's polynomial exceeds f or has a negative Gegenbauer coefficient: the bound would not be one.

    The Hermite interpolant at the quadrature's nodes is rebuilt by divided differences, and expanded by Gauss
    quadrature of another program.
    """
    from scipy.special import eval_jacobi, roots_jacobi

    nodes, _ = levenshtein_quadrature(n, d)

    def f(t: float) -> float:
        return -0.5 * math.log(2 - 2 * t) if s == 0 else (2 - 2 * t) ** (-s / 2)

    def slope(t: float) -> float:
        return 1 / (2 - 2 * t) if s == 0 else s * (2 - 2 * t) ** (-s / 2 - 1)

    once = nodes[0] == -1
    z = np.concatenate((nodes[:1] if once else [], np.repeat(nodes[1:] if once else nodes, 2)))
    table = np.array([f(t) for t in z])
    newton = [table[0]]
    for order in range(1, len(z)):
        gaps = z[order:] - z[:-order]
        table = np.array([slope(z[i]) if gap == 0 else (table[i + 1] - table[i]) / gap for i, gap in enumerate(gaps)])
        newton.append(table[0])

    def h(t: np.ndarray) -> np.ndarray:
        value = np.full_like(t, newton[-1])
        for coefficient, node in zip(newton[-2::-1], z[len(newton) - 2 :: -1], strict=True):
            value = value * (t - node) + coefficient
        return value

    grid = np.cos(np.linspace(1e-3, math.pi, 5001))
    target = np.array([f(t) for t in grid])
    assert (h(grid) <= target + 1e-9 * np.maximum(1, np.abs(target))).all()
    alpha = (d - 3) / 2
    t, weight = roots_jacobi(40, alpha, alpha)
    coefficients = [(weight * h(t)) @ eval_jacobi(k, alpha, alpha, t) for k in range(len(z))]
    assert min(coefficients[1:]) > -1e-9 * max(np.abs(coefficients))
    # And the bound is (n h_0 − h(1)) / (n − 1), the left side of the proof's (1).
    mean = coefficients[0] / weight.sum()
    bound = energy_lower_bound(n, d, s, distance="euclidean", space="full")
    assert bound == pytest.approx((n * mean - h(np.array([1.0]))[0]) / (n - 1), rel=1e-8)


def test_design_bounds() -> None:
    """The sizes below which no τ-design exists are not those of the tight designs that attain them."""
    tight = {(3, 1): 2, (3, 2): 4, (3, 3): 6, (3, 5): 12, (8, 7): 240, (24, 11): 196560, (23, 7): 4600, (7, 5): 56}
    for (d, tau), size in tight.items():
        assert design_bound(d, tau, projective=False) == size
    for (d, tau), lines in {(3, 2): 6, (7, 2): 28, (23, 2): 276, (8, 3): 120, (24, 5): 98280, (9, 1): 9}.items():
        assert design_bound(d, tau, projective=True) == lines


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("space", SPACES)
def test_any_exponent_is_survived(distance: str, space: str) -> None:
    """A large or tiny exponent makes the bound a NaN, an error, or a warning."""
    for s in (1e-6, 2.5, 29.9, 30.1, 100.0, 700.0, 1e4):
        bound = energy_lower_bound(40, 5, s, distance=distance, space=space)
        assert bound >= 0
        points = np.random.default_rng(0).standard_normal((40, 5))
        with np.errstate(over="ignore"):
            assert bound <= mean_energy(points, s, distance, space)


@pytest.mark.parametrize(
    ("arguments", "options", "names"),
    [
        ((1, 3), {}, "n"),
        ((3, 0), {}, "d"),
        ((3.0, 3), {}, "n"),
        ((3, 2.5), {}, "d"),
        ((3, 3, -1.0), {}, "s"),
        ((3, 3, math.nan), {}, "s"),
        ((3, 3, math.inf), {}, "s"),
        ((3, 3), {"distance": "cosine"}, "'angular'"),
        ((3, 3), {"space": "quarter"}, "'half'"),
    ],
)
def test_bad_input_is_refused(arguments, options, names) -> None:
    """Bad input passes, or its error names neither the argument nor the allowed values."""
    with pytest.raises(MHEError, match=names):
        energy_lower_bound(*arguments, **options)

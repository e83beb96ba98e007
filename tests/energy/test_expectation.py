"""The mean and the spread of the energy of independent uniform directions."""

import itertools
import math

import numpy as np
import pytest
import torch

from hf_mhe.energy.reference.expectation import expected_energy, expected_energy_std
from hf_mhe.errors import MHEError
from tests.oracle import DISTANCES, RHO, SPACES, kernel, quick_energy

VARIANTS = list(itertools.product(DISTANCES, SPACES))


def pair_energy(cos: torch.Tensor, s: float, distance: str) -> torch.Tensor:
    return kernel(RHO[distance](torch.sqrt(2 - 2 * cos), torch.sqrt(2 + 2 * cos)), s)


def mean_energies(draws: int, n: int, d: int, s: float, distance: str, space: str, seed: int) -> np.ndarray:
    """The mean energy of each of `draws` samples of n uniform directions, straight from the definition."""
    points = np.random.default_rng(seed).standard_normal((draws, n, d))
    return quick_energy(torch.from_numpy(points), s, distance, space).numpy()


def cosine_moments(d: int, s: float, distance: str) -> tuple[float, float]:
    """Mean and variance of f(c) by the midpoint rule in v, c = tanh(sinh v): another variable, another rule."""
    v = np.linspace(-5.5, 5.5, 40001)
    u = np.sinh(v)
    # The density (1 − c²)^((d−3)/2) dc is sech(u)^(d−1) cosh(v) dv; 1 − c = 2 / (1 + e^(2u)) keeps its digits.
    log_weight = -(d - 1) * (np.abs(u) + np.log1p(np.exp(-2 * np.abs(u))) - math.log(2)) + np.log(np.cosh(v))
    seen = log_weight > -700  # elsewhere the weight is no float, and f may be none either
    u, log_weight = u[seen], log_weight[seen]
    near, far = (torch.from_numpy(np.exp(0.5 * (math.log(4) - np.logaddexp(0, sign * 2 * u)))) for sign in (1, -1))
    f = kernel(RHO[distance](near, far), s).numpy()
    weight = np.exp(log_weight)
    mean = (weight @ f) / weight.sum()
    return mean, (weight @ (f - mean) ** 2) / weight.sum()


@pytest.mark.parametrize(("distance", "space"), VARIANTS)
@pytest.mark.parametrize(("n", "d", "s"), [(2, 3, 0), (5, 4, 0.5), (7, 6, 1), (4, 12, 2), (3, 20, 3.5), (6, 2, 0)])
def test_monte_carlo_agrees(n: int, d: int, s: float, distance: str, space: str) -> None:
    """Random directions do not cost what expected_energy says, or do not spread as expected_energy_std says."""
    draws = 8000
    sample = mean_energies(draws, n, d, s, distance, space, seed=n + 10 * d)
    expected = expected_energy(n, d, s, distance=distance, space=space)
    std = expected_energy_std(n, d, s, distance=distance, space=space)
    assert abs(sample.mean() - expected) < 4 * std / math.sqrt(draws)
    # The standard error of a standard deviation follows from the sample's own fourth moment.
    centred = sample - expected
    error = math.sqrt((np.mean(centred**4) - np.mean(centred**2) ** 2) / draws) / (2 * std)
    assert abs(math.sqrt(np.mean(centred**2)) - std) < 4 * error


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("d", "s"),
    [(2, 0), (3, 0), (3, 0.5), (4, 1), (5, 1.5), (10, 0.001), (33, 2), (384, 0), (384, 2), (1536, 7.3), (20000, 1)],
)
def test_quadrature_in_the_cosine_agrees(d: int, s: float, distance: str) -> None:
    """The closed form, or the adaptive quadrature in the angle, is not the integral that defines the expectation."""
    mean, variance = cosine_moments(d, s, distance)
    assert expected_energy(2, d, s, distance=distance, space="full") == pytest.approx(mean, rel=1e-10, abs=1e-12)
    std = expected_energy_std(2, d, s, distance=distance, space="full")
    assert std == pytest.approx(math.sqrt(variance), rel=1e-8)


@pytest.mark.parametrize("d", [4, 5, 9, 100, 384, 1536, 10**6])
def test_rational_form_for_s_2(d: int) -> None:
    """The gamma-function form does not come to (d − 2) / (2 (d − 3)) at s = 2."""
    assert expected_energy(7, d, 2.0, distance="euclidean", space="full") == pytest.approx(
        (d - 2) / (2 * (d - 3)), rel=1e-13
    )


def test_published_values() -> None:
    """The two reference values of random directions for MiniLM's widths have moved."""
    assert expected_energy(10, 384) == pytest.approx(0.501312, abs=5e-7)
    assert expected_energy(10, 1536) == pytest.approx(0.500326, abs=5e-7)


@pytest.mark.parametrize("space", SPACES)
def test_rational_variance_for_s_2(space: str) -> None:
    """The variance loses its digits to cancellation at large d.

    At s = 2, f = 1/(4B) with B ~ Beta(a, a): E B⁻² = (2a−1)(2a−2)/((a−1)(a−2)) and
    E 1/(B(1−B)) = (2a−1)(2a−2)/(a−1)²; with Python's exact fractions nothing cancels.
    """
    from fractions import Fraction

    n = 9
    for d in (6, 7, 50, 1000, 10**6):
        a = Fraction(d - 1, 2)
        mean = (2 * a - 1) / (a - 1) / 4
        second = (2 * a - 1) * (2 * a - 2) / ((a - 1) * (a - 2)) / 16
        mixed = (2 * a - 1) * (2 * a - 2) / (a - 1) ** 2 / 16
        pairs = Fraction(n * (n - 1), 2)
        if space == "full":
            variance = (second - mean**2) / pairs
        else:
            variance = 16 * pairs * 2 * (second + mixed - 2 * mean**2) / Fraction(2 * n * (2 * n - 1)) ** 2
        std = expected_energy_std(n, d, 2.0, distance="euclidean", space=space)
        assert std == pytest.approx(math.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_circle_in_closed_form(space: str) -> None:
    """On the circle, where the angle is uniform, the angular numbers are not those of a uniform variable."""
    s, n = 0.3, 4
    beta = math.gamma(1 - s) ** 2 / math.gamma(2 - 2 * s)
    mean, second = math.pi**-s / (1 - s), math.pi ** (-2 * s) / (1 - 2 * s)
    pairs = n * (n - 1) / 2
    if space == "full":
        expected, std = mean, math.sqrt((second - mean**2) / pairs)
    else:
        count = 2 * n * (2 * n - 1)
        expected = (8 * pairs * mean + 2 * n * math.pi**-s) / count
        variance = 2 * (second - mean**2) + 2 * (math.pi ** (-2 * s) * beta - mean**2)
        std = 4 * math.sqrt(pairs * variance) / count
    assert expected_energy(n, 2, s, distance="angular", space=space) == pytest.approx(expected, rel=1e-12)
    assert expected_energy_std(n, 2, s, distance="angular", space=space) == pytest.approx(std, rel=1e-10)


@pytest.mark.parametrize(("distance", "space"), VARIANTS)
def test_divergence_is_inf(distance: str, space: str) -> None:
    """A divergent expectation gets a made-up number, or a convergent one is called divergent."""
    options = {"distance": distance, "space": space}
    for d in (2, 3, 4, 9):
        assert expected_energy(5, d, d - 1, **options) == math.inf
        assert expected_energy(5, d, d + 3.5, **options) == math.inf
        assert math.isfinite(expected_energy(5, d, d - 1 - 1e-3, **options))
        assert expected_energy_std(5, d, (d - 1) / 2, **options) == math.inf
        assert math.isfinite(expected_energy_std(5, d, (d - 1) / 2 - 1e-3, **options))
        assert math.isfinite(expected_energy(5, d, 0, **options))
        assert math.isfinite(expected_energy_std(5, d, 0, **options))
    for s in (0, 0.5, 2):
        assert expected_energy(5, 1, s, **options) == math.inf
        assert expected_energy_std(5, 1, s, **options) == math.inf


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("d", [2, 3, 5, 20, 384])
def test_pole_has_its_residue(d: int, distance: str) -> None:
    """Just below s = d − 1 the singularity is cut off: the number is finite but wrong.

    Near θ = 0 the density is θ^(d−2)/Z and a distance a θ, so E f (d − 1 − s) → a^(1−d)/Z as s → d − 1.
    """
    tiny = torch.tensor(1e-6, dtype=torch.float64)
    a = float(RHO[distance](tiny, torch.tensor(2.0, dtype=torch.float64)) / tiny)
    inverse_z = a ** (1 - d) * math.exp(math.lgamma(d / 2) - math.lgamma((d - 1) / 2)) / math.sqrt(math.pi)
    residues = []
    for gap in (1e-3, 1e-4, 1e-5):
        s = d - 1 - gap
        residues.append(expected_energy(2, d, s, distance=distance, space="full") * (d - 1 - s))
    errors = [abs(residue / inverse_z - 1) for residue in residues]
    assert errors[0] < 0.01
    # The error is linear in the gap: a tenth of the gap, a tenth of the error.
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.02)
    assert errors[2] == pytest.approx(errors[0] / 100, rel=0.02)


@pytest.mark.parametrize(("distance", "space"), VARIANTS)
def test_limit_of_high_dimension(distance: str, space: str) -> None:
    """In a million dimensions random directions are not orthogonal up to 1/d."""
    n, d = 50, 10**6
    for s in (0, 0.5, 1, 2, 3):
        cos = torch.tensor([0.0, -1.0], dtype=torch.float64)
        f = pair_energy(cos, s, distance).tolist()
        orthogonal = f[0] if space == "full" else (2 * (n - 1) * f[0] + f[1]) / (2 * n - 1)
        expected = expected_energy(n, d, s, distance=distance, space=space)
        assert 0 < expected - orthogonal < 20 / d
        # c has variance 1/d, so that f varies by its slope at c = 0; the mirrored sum is flat there, and of order 1/d.
        std = expected_energy_std(n, d, s, distance=distance, space=space)
        if space == "full":
            right_angle = torch.zeros((), dtype=torch.float64, requires_grad=True)
            slope = float(*torch.autograd.grad(pair_energy(right_angle, s, distance), right_angle))
            assert std == pytest.approx(slope / math.sqrt(d * n * (n - 1) / 2), rel=1e-4)
        else:
            assert 0 < std < 20 / d


@pytest.mark.parametrize(("distance", "space"), VARIANTS)
def test_any_exponent_is_survived(distance: str, space: str) -> None:
    """A large exponent in a large dimension overflows instead of giving a number."""
    for d, s in [(1000, 400.0), (1000, 498.0), (1000, 900.0), (100000, 49000.0), (4, 1e4), (384, 1e-3)]:
        expected = expected_energy(6, d, s, distance=distance, space=space)
        std = expected_energy_std(6, d, s, distance=distance, space=space)
        assert expected >= 0
        assert std >= 0
        assert not math.isnan(expected + std)


@pytest.mark.parametrize("function", [expected_energy, expected_energy_std])
@pytest.mark.parametrize(
    ("arguments", "options", "names"),
    [
        ((1, 3), {}, "n"),
        ((3, 0), {}, "d"),
        ((3.0, 3), {}, "n"),
        ((3, 2.5), {}, "d"),
        ((True, 3), {}, "n"),
        (("3", 3), {}, "n"),
        ((3, 3, -1.0), {}, "s"),
        ((3, 3, math.nan), {}, "s"),
        ((3, 3, math.inf), {}, "s"),
        ((3, 3), {"distance": "cosine"}, "'angular'"),
        ((3, 3), {"space": "quarter"}, "'half'"),
    ],
)
def test_bad_input_is_refused(function, arguments, options, names) -> None:
    """Bad input passes, or its error names neither the argument nor the allowed values."""
    with pytest.raises(MHEError, match=names):
        function(*arguments, **options)

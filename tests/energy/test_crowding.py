"""How crowded random directions are: in every dimension, and how far chance carries them."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from hf_mhe.energy import equivalent_dimension
from hf_mhe.energy.reference.crowding import (
    dimension_of_excess,
    equivalent_dimension_std,
    equivalent_dimension_z,
    random_excess,
    random_excess_std,
)


def test_it_is_a_number_in_every_dimension_and_falls() -> None:
    """If this fails, layers of some widths have no equivalent dimension: scipy's ₂F₁ is NaN at 299."""
    dimensions = [*np.arange(1, 4000) / 2 + 0.5, *np.logspace(3, 15, 200)]
    found = [random_excess(float(dimension)) for dimension in sorted(set(dimensions))]
    assert all(map(math.isfinite, found))
    assert all(before > after for before, after in itertools.pairwise(found))
    for dimension in range(1, 2000):
        assert dimension_of_excess(random_excess(dimension)) == pytest.approx(dimension, rel=1e-10)
        assert 0 <= random_excess_std(40, dimension) < math.inf


@pytest.mark.parametrize("dimension", [2.5, 4, 27, 299, 1535.5])
def test_the_excess_and_its_deviation_are_integrals_over_the_density(dimension: float) -> None:
    """If this fails, the series is not that of the random directions: moments by quadrature say otherwise."""
    z = 4 / 2.1**2

    def mean_of(power: int) -> float:
        # c = cos t, with density sin(t)^(δ − 2)
        def part(t: float) -> float:
            square = z * math.cos(t) ** 2
            return (square / (1 - square)) ** power * math.sin(t) ** (dimension - 2)

        options = {"epsabs": 0, "epsrel": 1e-12, "limit": 400}
        norm = quad(lambda t: math.sin(t) ** (dimension - 2), 0, math.pi / 2, **options)[0]
        return quad(part, 0, math.pi / 2, **options)[0] / norm

    assert random_excess(dimension) == pytest.approx(mean_of(1), rel=1e-8)
    deviation = math.sqrt(mean_of(2) - mean_of(1) ** 2)
    assert random_excess_std(30, dimension) == pytest.approx(deviation / math.sqrt(30 * 29 / 2), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(2, 2), (3, 299), (12, 64), (60, 2), (100, 27), (64, 300)])
def test_z_of_random_rows_is_standard(n: int, d: int) -> None:
    """If this fails, chance is called crowding, or crowding chance."""
    found = []
    generator = np.random.default_rng(0)
    for _ in range(300):
        rows = torch.from_numpy(generator.standard_normal((n, d)))
        found.append(equivalent_dimension_z(equivalent_dimension(rows), n, d))
    assert statistics.mean(found) == pytest.approx(0, abs=0.25)
    assert statistics.pstdev(found) == pytest.approx(1, abs=0.25)


def test_orthogonal_rows_have_a_finite_z() -> None:
    """If this fails, two orthogonal neurons, which are nothing special, look like the best layer of all."""
    assert equivalent_dimension_z(math.inf, 2, 64) < 1
    assert equivalent_dimension_z(math.inf, 64, 64) > 4
    assert equivalent_dimension_std(64, 64) > 0

"""The score: 0 at the optimum, 1 at a random draw, None where it is not defined."""

import math

import numpy as np
import pytest

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.reference.bounds import energy_lower_bound
from hf_mhe.energy.reference.expectation import expected_energy, expected_energy_std
from hf_mhe.energy.reference.score import energy_score
from hf_mhe.errors import MHEError
from tests.oracle import SPACES, VARIANTS

POTENTIALS = [Potential(*variant) for variant in VARIANTS]


@pytest.mark.parametrize("potential", POTENTIALS, ids=Potential.describe)
def test_ends_of_the_scale(potential: Potential) -> None:
    """The optimum is not scored 0, a random draw not 1 with z = 0, or the references are another potential's."""
    n, d = 60, 17
    options = {"distance": potential.distance, "space": potential.space}
    expected = expected_energy(n, d, potential.s, **options)
    std = expected_energy_std(n, d, potential.s, **options)
    bound = energy_lower_bound(n, d, potential.s, **options)
    at_random, at_optimum = energy_score(expected, n, d, potential), energy_score(bound, n, d, potential)
    assert (at_random.expected, at_random.std, at_random.lower_bound) == (expected, std, bound)
    assert (at_random.score, at_random.z) == (1.0, 0.0)
    assert at_optimum.score == 0.0
    assert at_optimum.z == pytest.approx((bound - expected) / std)
    assert energy_score(expected + 3 * std, n, d, potential).z == pytest.approx(3.0)
    assert energy_score(2 * expected - bound, n, d, potential).score == pytest.approx(2.0)


@pytest.mark.parametrize(("n", "d"), [(64, 576), (512, 64)])
@pytest.mark.parametrize("space", SPACES)
def test_a_random_layer_scores_one(n: int, d: int, space: str) -> None:
    """A freshly initialised layer is called redundant, or better than chance, whatever its shape."""
    rows = np.random.default_rng(7).standard_normal((n, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if space == "half":
        rows = np.concatenate((rows, -rows))
    off_diagonal = ~np.eye(len(rows), dtype=bool)
    energy = (1 / np.clip(2 - 2 * (rows @ rows.T)[off_diagonal], 1e-12, None)).mean()
    scored = energy_score(energy, n, d, Potential(2.0, "euclidean", space))
    assert scored.score == pytest.approx(1.0, abs=0.25)  # one standard deviation is about sqrt(2/d)
    assert abs(scored.z) < 4


def test_not_defined_where_the_expectation_diverges() -> None:
    """A divergent reference is turned into a number: d = 3 at s = 2 has no expected energy, d = 4 no variance."""
    scored = energy_score(1.0, 10, 3, Potential(2.0))
    assert (scored.expected, scored.std, scored.score, scored.z) == (math.inf, math.inf, None, None)
    assert math.isfinite(scored.lower_bound)
    scored = energy_score(1.0, 10, 4, Potential(2.0))
    assert scored.std == math.inf
    assert scored.score is not None
    assert scored.z is None
    scored = energy_score(1.0, 3, 1, Potential(0.0))
    assert (scored.lower_bound, scored.score, scored.z) == (math.inf, None, None)


def test_not_defined_where_there_is_no_span() -> None:
    """At an exponent where every number underflows, nought is divided by nought."""
    scored = energy_score(0.0, 5, 20000, Potential(4000.0))
    assert scored.expected == scored.lower_bound == 0.0
    assert (scored.score, scored.z) == (None, None)


def test_energy_that_is_no_number() -> None:
    """A layer whose pairs all coincide, so that no energy is left, gets a score."""
    scored = energy_score(math.nan, 10, 20, Potential())
    assert (scored.score, scored.z) == (None, None)
    assert energy_score(math.inf, 10, 20, Potential()).score == math.inf


def test_bad_input_is_refused() -> None:
    """A shape without pairs, or a softened potential, is scored against numbers that are not its own."""
    with pytest.raises(MHEError, match="n must be"):
        energy_score(0.5, 1, 20, Potential())
    with pytest.raises(MHEError, match="softening"):
        energy_score(0.5, 10, 20, Potential(softening=0.1))

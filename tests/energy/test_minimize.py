"""The solver against published minima, configurations that are provably optimal, and first-order conditions."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from hf_mhe.energy import energy_lower_bound, hyperspherical_energy, minimize_energy
from hf_mhe.energy.rows import project_
from hf_mhe.energy.solver.lbfgs import minimize_on_spheres
from tests.oracle import DISTANCES, SPACES, THOMSON


def cosines(points: torch.Tensor) -> torch.Tensor:
    first, second = torch.triu_indices(len(points), len(points), offset=1)
    return (points @ points.T)[first, second]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("n", THOMSON)
def test_thomson_energies_are_reached(n: int, known: bool) -> None:
    """If this failed, the solver would stop in a worse place than the literature's, or the gradient would be wrong."""
    points = minimize_energy(n, 3, known=known)
    assert points.shape == (n, 3)
    assert points.dtype == torch.float64
    assert torch.allclose(points.norm(dim=1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-14)
    energy = (2 - 2 * cosines(points)).rsqrt().sum()  # Coulomb's law, written out
    assert float(energy) == pytest.approx(THOMSON[n], rel=1e-9)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("s", [0, 0.5, 1, 2])
@pytest.mark.parametrize(("n", "d"), [(2, 2), (2, 5), (4, 3), (7, 6), (6, 9)])
def test_simplex(n: int, d: int, s: float, known: bool) -> None:
    """If this failed, up to d + 1 directions would not all be equally far from each other."""
    cos = cosines(minimize_energy(n, d, s, known=known, seed=5))
    assert torch.allclose(cos, torch.full_like(cos, -1 / (n - 1)), rtol=0, atol=1e-13 if known else 1e-6)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("s", "distance"), [(0, "euclidean"), (1, "euclidean"), (2, "euclidean"), (1, "angular")])
def test_cross_polytope(s: float, distance: str, known: bool) -> None:
    """If this failed, 2 d directions would not be the axes; angular, they sit on a kink where no gradient vanishes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cos = cosines(minimize_energy(8, 4, s, distance=distance, known=known, restarts=2)).sort().values
    ideal = torch.cat([-torch.ones(4), torch.zeros(24)]).double()
    proven = known and distance == "euclidean"  # the angular bound of the package does not prove it, so it is searched
    assert torch.allclose(cos, ideal, rtol=0, atol=1e-13 if proven else 1e-6)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("s", [0, 1, 2])
def test_lines_up_to_the_dimension_are_orthogonal(s: float, distance: str, known: bool) -> None:
    """If this failed, the half-space optimum would not be what Liu et al. say it is: orthogonal neurons."""
    cos = cosines(minimize_energy(5, 6, s, distance=distance, space="half", known=known))
    assert float(cos.abs().max()) < (1e-14 if known else 1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("n", "s"), [(6, 0), (7, 1), (8, 2.5)])
def test_on_the_circle_directions_are_equally_spaced(n: int, s: float, distance: str, space: str) -> None:
    """If this failed, d = 2, where every answer is known, would be got wrong."""
    turn = math.pi if space == "half" else 2 * math.pi
    for known in (True, False):
        points = minimize_energy(n, 2, s, distance=distance, space=space, known=known)
        angle = torch.atan2(points[:, 1], points[:, 0]).remainder(turn).sort().values
        steps = torch.cat([angle.diff(), angle[:1] + turn - angle[-1:]])
        assert torch.allclose(steps, torch.full_like(steps, turn / n), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n", "d", "space"), [(12, 3, "full"), (27, 6, "full"), (6, 3, "half"), (16, 6, "half")])
def test_sharp_codes_attain_the_bound(n: int, d: int, space: str) -> None:
    """If this failed, icosahedron, Schläfli's 27 lines, or the equiangular lines in R^3 and R^6 would be missed."""
    for s in (0.0, 1.0, 3.0):
        points = minimize_energy(n, d, s, space=space)
        energy = float(hyperspherical_energy(points, s, space=space))
        assert energy == pytest.approx(energy_lower_bound(n, d, s, space=space), rel=1e-9)


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("s", [0, 0.7, 1, 2, 12])
def test_the_answer_is_a_local_minimum_for_every_potential(s: float, distance: str, space: str) -> None:
    """If this failed, some potential's answer could be improved by a small step."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = minimize_energy(13, 4, s, distance=distance, space=space, restarts=1)

    def energy(rows: torch.Tensor) -> float:
        return float(hyperspherical_energy(rows, s, distance=distance, space=space))

    lowest = energy(points)
    generator = torch.Generator().manual_seed(1)
    for length in (1e-2, 1e-3):
        for _ in range(20):
            step = length * torch.randn(points.shape, generator=generator, dtype=torch.float64)
            assert energy(points + step) > lowest


def test_an_angular_minimum_with_opposite_points_is_settled() -> None:
    """If this failed, a minimum on kinks, where points pair up as opposites, would end in a warning or inexact."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = minimize_energy(7, 3, 0, distance="angular", restarts=2)
    opposite = torch.linalg.vector_norm(points[:, None] + points, dim=2)
    assert int((opposite.amin(1) < 1e-12).sum()) == 2
    # Both ends of the pair feel the same force, which is no larger than the pair's own slope.
    ends = points.clone().requires_grad_()
    others = [j for j in range(7) if float(opposite[j].min()) >= 1e-12]
    pair = [j for j in range(7) if j not in others]
    energy = -torch.log(torch.arccos(ends[pair] @ points[others].T)).sum()
    (force,) = torch.autograd.grad(energy, ends)
    force = project_(force, points)[pair]
    assert torch.allclose(force[0], force[1], rtol=0, atol=1e-6)
    assert float(force.norm(dim=1).max()) <= 1 / math.pi


def test_a_large_exponent_packs() -> None:
    """If this failed, energies of a large exponent would overflow; their limit is the best packing (Tammes)."""
    nearest = math.degrees(math.acos(float(cosines(minimize_energy(24, 3, 200, restarts=2)).max())))
    assert nearest == pytest.approx(43.6907671, abs=0.35)  # the snub cube's angle, Robinson (1961)


def test_class_prototypes() -> None:
    """If this failed, a frozen classifier head of 100 classes in 512 dimensions would not be maximally separated."""
    cos = cosines(minimize_energy(100, 512))
    assert torch.allclose(cos, torch.full_like(cos, -1 / 99), rtol=0, atol=1e-13)
    crowded = minimize_energy(150, 16, tolerance=1e-7)
    energy, bound = float(hyperspherical_energy(crowded, 1)), energy_lower_bound(150, 16, 1)
    assert bound < energy < bound * 1.0005


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    """If this failed, two runs would have different prototypes, or asking for them would change a training run."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for options in ({"n": 9, "d": 3}, {"n": 4, "d": 5}):
        first, again, other = (minimize_energy(**options, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert not first.requires_grad


def test_stopping_early_is_said() -> None:
    """If this failed, an unfinished search would pass for an answer."""
    with pytest.warns(UserWarning, match=r"n=20, d=3.*after 3 iterations.*max_iterations or tolerance"):
        minimize_energy(20, 3, max_iterations=3)


def test_the_line_search_leaves_a_maximum_and_stops_on_a_minimum() -> None:
    """If this failed, the solver would take a critical point from which there is no way for a failure."""
    axis = torch.eye(3, dtype=torch.float64)[0]

    def height(point: torch.Tensor) -> tuple[float, torch.Tensor]:
        return float((point @ axis).sum()), project_(axis.expand_as(point).clone(), point)

    lowest = minimize_on_spheres(height, -axis[None], tolerance=1e-15, max_iterations=5, history=3)
    assert lowest.converged
    assert lowest.iterations == 0
    tilted = torch.nn.functional.normalize(torch.tensor([[1.0, 1e-9, 0.0]], dtype=torch.float64))
    found = minimize_on_spheres(height, tilted, tolerance=1e-15, max_iterations=100, history=3)
    assert found.converged
    assert found.value == pytest.approx(-1, abs=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, "n must be an integer >= 2; got 1"),
        ({"n": 3.5}, "n must be an integer >= 2; got 3.5"),
        ({"d": 0}, "d must be an integer >= 1; got 0"),
        ({"d": 1}, r"4 distinct directions do not exist in d = 1 \(full space\)"),
        ({"n": 2, "d": 1, "space": "half"}, "2 distinct directions do not exist"),
        ({"s": -1}, "s must be a finite number >= 0; got -1"),
        ({"s": 1e5, "n": 40}, "s=100000 is too large for n=40"),
        ({"s": 1e5, "n": 5}, "s=100000 is too large for n=5"),
        ({"distance": "cosine"}, "'euclidean', 'angular'; got 'cosine'"),
        ({"space": "both"}, "'full', 'half'; got 'both'"),
        ({"seed": 1.5}, "seed must be an integer .*; got 1.5"),
        ({"restarts": 0}, "restarts must be an integer >= 1; got 0"),
        ({"max_iterations": True}, "max_iterations must be an integer >= 1; got True"),
        ({"tolerance": 0.0}, "tolerance must be a finite number > 0; got 0.0"),
    ],
)
def test_bad_input_is_named(options: dict[str, object], message: str) -> None:
    """If this failed, a mistake would surface as a number, or as an error from deep inside."""
    with pytest.raises(ValueError, match=message):
        minimize_energy(**{"n": 4, "d": 3, **options})


def test_two_directions_on_a_line() -> None:
    """If this failed, the one configuration that d = 1 has would be refused."""
    assert minimize_energy(2, 1).flatten().sort().values.tolist() == [-1, 1]

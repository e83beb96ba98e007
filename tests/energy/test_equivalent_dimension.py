"""The equivalent dimension: against quadrature and a double loop, and what has to leave it alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_mhe.energy import Potential, equivalent_dimension, pair_statistics
from hf_mhe.energy.reference.crowding import (
    Z,
    dimension_of_excess,
    equivalent_dimension_std,
    random_crowding,
    random_excess,
)
from tests.energy.cases import random_rows
from tests.oracle import directions


def slow_crowding(weight: torch.Tensor) -> float:
    """The mean of F over pairs, from the distances of the points in float64, coincident ones included."""
    points = directions(weight)
    values = []
    for i in range(len(points) - 1):
        near, far = ((points[i + 1 :] + sign * points[i]).square().sum(1) for sign in (-1, 1))
        values.append((1 / (near + 0.1) + 1 / (far + 0.1)).sum().item())
    return math.fsum(values) / (len(points) * (len(points) - 1) / 2)


def by_quadrature(dimension: float) -> float:
    """X(δ), over the angle between random directions, whose density is sin^(δ−2); symmetric about a right angle."""
    from scipy.integrate import quad

    def integral(f: Callable[[float], float]) -> float:
        options = {"epsabs": 0, "epsrel": 1e-11, "limit": 500}
        power = dimension - 1
        if power < 2:  # θ^(δ−2) has no bound at 0: over v = θ^(δ−1), of which it is the derivative

            def whole(v: float) -> float:
                theta = v ** (1 / power)
                return f(theta) * (math.sin(theta) / theta if theta else 1.0) ** (power - 1) / power

            return quad(whole, 0, (math.pi / 2) ** power, **options)[0]
        lowest = max(0.0, math.pi / 2 - 40 / math.sqrt(dimension))
        return quad(lambda theta: f(theta) * math.sin(theta) ** (power - 1), lowest, math.pi / 2, **options)[0]

    def crowding(theta: float) -> float:
        return 1 / (2.1 - 2 * math.cos(theta)) + 1 / (2.1 + 2 * math.cos(theta))

    return integral(crowding) / integral(lambda theta: 1.0)


def slow_dimension(weight: torch.Tensor) -> float:
    """The inverse of X by bisection, on the quadrature."""
    low, high, crowding = 1.0001, 1e5, slow_crowding(weight)
    while high - low > 1e-7 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if by_quadrature(middle) > crowding else (low, middle)
    return low


def test_known_values() -> None:
    """If this failed, every reader's reference point would have moved."""
    assert random_crowding(1) == pytest.approx(10.243902, abs=1e-6)
    assert random_crowding(2) == pytest.approx(2 / math.sqrt(0.41), rel=1e-13)
    assert random_crowding(3) == pytest.approx(0.5 * math.log(41), rel=1e-13)
    assert random_crowding(math.inf) == pytest.approx(2 / 2.1, rel=1e-15)


@pytest.mark.parametrize("dimension", [1.5, 2.0, 3.0, 8.0, 64.5, 768.0, 30000.0])
def test_crowding_of_random_directions_by_quadrature(dimension: float) -> None:
    """If this failed, the closed form would not be the integral that defines it."""
    assert random_crowding(dimension) == pytest.approx(by_quadrature(dimension), rel=1e-9)


@pytest.mark.parametrize("dimension", [1.0, 1.01, 1.5, 7.0, 64.0, 580.3, 1e5, 1e9])
def test_the_inverse_comes_back(dimension: float) -> None:
    """If this failed, a random layer would not have the dimension that it has."""
    assert dimension_of_excess(random_excess(dimension)) == pytest.approx(dimension, rel=1e-11)


def test_the_ends_of_the_scale() -> None:
    """If this failed, neurons on one line, or all at right angles, would stop the report or get a made-up number."""
    assert equivalent_dimension(torch.ones(5, 3)) == 1.0
    assert equivalent_dimension(torch.tensor([[1.0, 2.0], [-2.0, -4.0]])) == 1.0
    assert equivalent_dimension(torch.tensor([[3.0], [-2.0]])) == 1.0  # one dimension has one line
    assert equivalent_dimension(torch.randn(700, 1)) == pytest.approx(1.0, rel=1e-12)
    assert equivalent_dimension(torch.tensor([[1.0, 0.0], [0.0, -2.0]])) == math.inf
    for n in (8, 600):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert equivalent_dimension(torch.eye(n, dtype=dtype)) == math.inf
            assert pair_statistics(torch.eye(n, dtype=dtype), Potential()).equivalent_dimension == math.inf
    assert math.isnan(dimension_of_excess(math.nan))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 2), (7, 3), (65, 33), (300, 17), (700, 24), (40, 1000), pytest.param((5000, 64), marks=pytest.mark.slow)],
    ids=str,
)
def test_by_double_loop_and_quadrature(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """If this failed, a layer's first number would not be its definition's."""
    weight = random_rows(*shape, dtype=dtype)
    if len(weight) > 2:
        weight[1] = weight[0] + 0.01 * weight[1]  # closer than float32 products can tell
    assert equivalent_dimension(weight) == pytest.approx(slow_dimension(weight), rel=1e-4)


@pytest.mark.parametrize("d", [4, 27, 64, 768])
@pytest.mark.parametrize("n", [16, 64, 512, 4096])
def test_random_rows_have_the_dimension_they_have(n: int, d: int) -> None:
    """If this failed, a fresh layer would be called crowded, or its width would count."""
    found = equivalent_dimension(random_rows(n, d, dtype=torch.float32))
    # To first order in the crowding, whose distribution is that of the reciprocal.
    assert abs(1 / found - 1 / d) < 4 * equivalent_dimension_std(n, d) / d**2


@pytest.mark.parametrize(("n", "d"), [(16, 27), (64, 4), (200, 64)])
def test_random_rows_scatter_by_their_standard_deviation(n: int, d: int) -> None:
    """If this failed, a z-value would call a random layer crowded, or a crowded one random."""
    seeds = 300
    std = equivalent_dimension_std(n, d)
    scores = torch.tensor([(equivalent_dimension(random_rows(n, d, seed)) - d) / std for seed in range(seeds)])
    assert abs(scores.mean().item()) < 4 / math.sqrt(seeds) + std / d  # to first order, in the crowding
    assert scores.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * seeds) + std / d)


def test_one_direction_has_no_scatter() -> None:
    """If this failed, neurons of dimension 1, which are all on one line, would have a z-value."""
    assert equivalent_dimension_std(10, 1) == 0


def test_it_does_not_count_the_neurons() -> None:
    """If this failed, a wide layer would be called more crowded than a narrow one of the same distribution."""

    def draw(n: int, seed: int) -> torch.Tensor:
        rows = random_rows(n, 32, seed, torch.float32) * torch.linspace(1, 32, 32).rsqrt()
        return rows + 0.15

    few = torch.tensor([equivalent_dimension(draw(512, seed)) for seed in range(32)])
    mean, error = few.mean().item(), few.std().item()  # of one draw of 512; it falls with the root of their number
    assert mean < 20
    for n, draws in ((2048, 8), (8192, 2)):
        found = sum(equivalent_dimension(draw(n, seed)) for seed in range(draws)) / draws
        assert abs(found - mean) < 4 * error * math.sqrt(1 / 32 + 512 / n / draws)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_continuous_where_copies_move(dtype: torch.dtype) -> None:
    """If this failed, moving a copy by a rounding error would change the number to look at, as it does the energy."""
    weight = random_rows(32, 64).repeat(8, 1)
    still = equivalent_dimension(weight.to(dtype))
    assert still == pytest.approx(slow_dimension(weight.to(dtype)), rel=1e-4)
    assert still < 0.12 * equivalent_dimension(weight[:32].to(dtype))
    for power in range(-9, 0):
        moved = (weight + 10.0**power * random_rows(256, 64)).to(dtype)
        found = equivalent_dimension(moved)
        assert found == pytest.approx(still, rel=1e-4 + 2 * 10.0**power)
        assert found == pytest.approx(slow_dimension(moved), rel=1e-4)
        assert pair_statistics(moved, Potential()).equivalent_dimension == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_copy_in_a_layer_moves(dtype: torch.dtype) -> None:
    """If this failed, one pair would be lost from the mean, or counted twice, once float32 cannot tell it apart."""
    weight = random_rows(600, 64)
    others = equivalent_dimension(weight.to(dtype))
    weight[400] = -3 * weight[5]
    still = equivalent_dimension(weight.to(dtype))
    assert still < others
    before = still
    for power in range(-9, 0):
        moved = weight.clone()
        moved[400] += 10.0**power * random_rows(1, 64)[0]
        found = equivalent_dimension(moved.to(dtype))
        assert found == pytest.approx(before, rel=1e-6 + 1e-3 * 10.0**power)
        before = found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_copy_lowers_it(dtype: torch.dtype) -> None:
    """If this failed, duplicating neurons would make a layer look better."""
    weight = random_rows(40, 12, dtype=dtype)
    of_others = of_one = equivalent_dimension(weight)
    # Up to half of the rows: a row without a copy among rows with one is less crowded than they are.
    for copies in range(1, 21):
        fewer, of_others = of_others, equivalent_dimension(torch.cat([weight, weight[:copies] * (-1) ** copies]))
        assert of_others < fewer
        fewer, of_one = of_one, equivalent_dimension(torch.cat([weight, weight[:1].repeat(copies, 1)]))
        assert of_one < fewer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("n", "d"), [(40, 12), (700, 24)])
def test_nothing_else_moves_it(n: int, d: int, dtype: torch.dtype) -> None:
    """If this failed, the number would depend on more than how crowded the lines are."""
    rel = 1e-11 if dtype == torch.float64 else 2e-6
    weight = random_rows(n, d) + 0.2
    weight[3] = weight[4] + 1e-3 * weight[5]
    found = equivalent_dimension(weight.to(dtype))
    rotation = torch.linalg.qr(random_rows(d, d, seed=1)).Q
    lengths = torch.logspace(-3, 3, n, dtype=torch.float64) * torch.tensor([1.0, -1.0]).repeat(n // 2)
    for changed in (weight @ rotation, lengths[:, None] * weight, 1e-30 * weight, weight.flip(0)):
        assert equivalent_dimension(changed.to(dtype)) == pytest.approx(found, rel=rel)
    with_dead = torch.cat([weight, torch.zeros(3, d)]).to(dtype)
    assert equivalent_dimension(with_dead) == pytest.approx(found, rel=rel)
    assert pair_statistics(with_dead, Potential()).equivalent_dimension == pytest.approx(found, rel=rel)


@pytest.mark.parametrize("potential", [Potential(), Potential(0, "angular", "half")], ids=Potential.describe)
def test_the_walk_of_the_statistics_gives_the_same(potential: Potential) -> None:
    """If this failed, a report would say another number than the function, or one that its potential changes."""
    for n, d in ((30, 8), (700, 33)):
        weight = random_rows(n, d, dtype=torch.float32)
        weight[3], weight[5], weight[7] = weight[4], -2 * weight[6], 0
        statistics = pair_statistics(weight, potential)
        assert statistics.equivalent_dimension == pytest.approx(equivalent_dimension(weight), rel=1e-6)


def test_minilm(minilm_path: Path) -> None:
    """If this failed, a real checkpoint's numbers would not be those that were measured by the definition."""
    from safetensors import safe_open

    expected = {"intermediate.dense": 112.6, "attention.self.key": 149.7, "attention.output.dense": 181.9}
    with safe_open(f"{minilm_path}/model.safetensors", framework="pt") as file:
        for name, dimension in expected.items():
            weight = file.get_tensor(f"encoder.layer.0.{name}.weight")
            assert equivalent_dimension(weight) == pytest.approx(dimension, abs=0.05)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2, 3, 4), r"shape \(n, d\)"),
        (torch.ones(1, 3), "at least two neurons"),
        (torch.tensor([[1.0, math.nan], [0.0, 1.0]]), "not finite"),
        (torch.zeros(4, 3), "only 0 of 4 rows"),
    ],
)
def test_bad_input_is_named(weight: torch.Tensor, message: str) -> None:
    """If this failed, a mistake would surface as a number."""
    with pytest.raises(ValueError, match=message):
        equivalent_dimension(weight)


@pytest.mark.parametrize("power", range(-300, -3, 9))
def test_neurons_that_are_all_but_orthogonal_have_a_dimension(power: int) -> None:
    """If this failed, a layer of orthonormal rows, whose cosines are rounding errors, would stop an analysis."""
    excess = 10.0**power
    dimension = dimension_of_excess(excess)
    # X's first terms: E g = z / δ · (1 + 3 z / (δ + 2) + …).
    expected = Z / excess
    assert dimension == pytest.approx(expected * (1 + 3 * Z / (expected + 2)), rel=1e-4)
    assert dimension > dimension_of_excess(1.001 * excess)

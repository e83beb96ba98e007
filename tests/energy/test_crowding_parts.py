"""The excess of an energy, divided by cause: against sums over pairs with derivatives by hand, and planted causes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_mhe.energy import CrowdingParts, PairStatistics, Potential, crowding_parts, expected_energy, pair_statistics
from hf_mhe.energy.reference.crowding_parts import derivatives
from hf_mhe.errors import MHEError
from tests.energy.cases import random_rows
from tests.oracle import SPACES, VARIANTS, directions, pair_values

POTENTIALS = [Potential(*variant) for variant in VARIANTS]
NONE = CrowdingParts(None, None, None)


def by_hand(s: float, distance: str) -> tuple[float, float]:
    """`f'(0)` and `f''(0)`, differentiated on paper; the logarithm has those of s = 1 over s, at s = 0."""
    factor = s or 1.0
    if distance == "euclidean":
        return factor * 2 ** (-s / 2 - 1), factor * (s + 2) * 2 ** (-s / 2 - 2)
    return factor * (math.pi / 2) ** (-s - 1), factor * (s + 1) * (math.pi / 2) ** (-s - 2)


def divided(statistics: PairStatistics, potential: Potential) -> CrowdingParts:
    return crowding_parts(
        statistics.energy,
        statistics.n,
        statistics.d,
        potential,
        mean_cosine=statistics.mean_cosine,
        mean_square_cosine=statistics.mean_square_cosine,
        coincident=statistics.coincident,
    )


def excess(statistics: PairStatistics, potential: Potential) -> float:
    options = {"distance": potential.distance, "space": potential.space}
    return statistics.energy - expected_energy(statistics.n, statistics.d, potential.s, **options)


def cone_with_copies(n: int, d: int) -> Tensor:
    """Rows about a shared direction, with a pair that nearly coincides, a copy, and two copies with the other sign."""
    weight = random_rows(n, d) + 0.5
    weight[1] = 2 * weight[0] + 0.02 * weight[2]
    weight[3] = 3 * weight[4]
    weight[5], weight[6] = -weight[7], -2 * weight[7]
    return weight


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("potential", POTENTIALS, ids=Potential.describe)
@pytest.mark.parametrize(("n", "d"), [(12, 6), (90, 24), (700, 48)])
def test_each_part_by_sums_over_pairs(n: int, d: int, potential: Potential) -> None:
    """If this failed, a cause would be given a weight that it has not, and the parts would not be of the excess."""
    weight = cone_with_copies(n, d)
    statistics = pair_statistics(weight.float(), potential)
    parts = divided(statistics, potential)
    assert sum((parts.shared_direction, parts.concentration, parts.close_pairs)) == pytest.approx(
        excess(statistics, potential), abs=1e-6
    )

    unit = directions(weight.float())
    first, second = torch.triu_indices(n, n, offset=1)
    cos = (unit[first] * unit[second]).sum(1)
    half = potential.space == "half"
    apart = (1 - (cos.abs() if half else cos)) > 1e-12
    assert statistics.coincident == int((~apart).sum()) == (4 if half else 2)
    slope, bend = by_hand(potential.s, potential.distance)
    # Of the points' ordered pairs, 4n(n − 1) are those of two neurons and 2n of a neuron with its own image.
    pairs = int(apart.sum())
    weight_of_pairs = 8 * pairs / (8 * pairs + 2 * n) if half else 1.0
    u, v, cos = unit[first][apart], unit[second][apart], cos[apart]
    expected_first = 0.0 if half else slope * cos.mean().item()
    expected_second = weight_of_pairs * bend / 2 * (cos.square().mean().item() - 1 / d)
    assert parts.shared_direction == pytest.approx(expected_first, rel=1e-5)
    assert parts.concentration == pytest.approx(expected_second, rel=1e-5)
    if half:
        return  # where the rest has the share of the pairs that coincide, too
    options = {"distance": potential.distance, "space": potential.space}
    beyond = pair_values(u, v, potential.s, potential.distance, "full") - slope * cos - bend / 2 * cos.square()
    at_random = expected_energy(n, d, potential.s, **options) - bend / 2 / d
    assert parts.close_pairs == pytest.approx(beyond.mean().item() - at_random, abs=2e-6)


@pytest.mark.parametrize("s", [0, 1, 2])
@pytest.mark.parametrize("distance", ["euclidean", "angular"])
def test_the_rest_in_half_space(s: int, distance: str) -> None:
    """If this failed, the fixed pairs of a neuron with its image would be taken for close pairs."""
    n, d = 60, 16
    weight = random_rows(n, d)
    weight[1] = weight[0] + 0.2 * weight[1]
    potential = Potential(s, distance, "half")
    parts = divided(pair_statistics(weight, potential), potential)
    unit = directions(weight)
    first, second = torch.triu_indices(n, n, offset=1)
    cos = (unit[first] * unit[second]).sum(1)
    _, bend = by_hand(s, distance)
    beyond = pair_values(unit[first], unit[second], s, distance, "half") - bend * cos.square()
    at_random = 2 * expected_energy(n, d, s, distance=distance) - bend / d
    share = (n - 1) / (2 * n - 1)
    assert parts.close_pairs == pytest.approx(share * (beyond.mean().item() - at_random), abs=1e-9)


@pytest.mark.parametrize("s", [0, 0.5, 1, 2, 3.7])
@pytest.mark.parametrize("distance", ["euclidean", "angular"])
def test_derivatives_of_every_exponent(s: float, distance: str) -> None:
    """If this failed, an exponent beside the paper's would be divided by another one's weights."""
    slope, bend = by_hand(s, distance)
    with torch.inference_mode():
        assert derivatives(Potential(s, distance)) == pytest.approx((slope, bend), rel=1e-12)
        assert derivatives(Potential(s, distance, "half")) == pytest.approx((0.0, 2 * bend), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (2, 2), (9, 4), (300, 17), (1100, 40), (600, 300)], ids=str)
def test_moments_by_brute_force(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """If this failed, the means would be of the wrong pairs, or of fewer than all where rows coincide or are dead."""
    weight = random_rows(*shape, dtype=dtype)
    if len(weight) > 8:
        weight[1], weight[3], weight[5] = weight[0], -weight[2], 0
    for offset in (0.0, 0.3):
        moved = torch.where(weight == 0, 0, weight + offset)
        unit = directions(moved[moved.abs().sum(1) > 0])
        cos = (unit @ unit.T)[tuple(torch.triu_indices(len(unit), len(unit), offset=1))]
        for space in SPACES:
            statistics = pair_statistics(moved, Potential(space=space))
            assert statistics.mean_cosine == pytest.approx(cos.mean().item(), rel=1e-6, abs=1e-8)
            assert statistics.mean_square_cosine == pytest.approx(cos.square().mean().item(), rel=1e-6)


def test_moments_of_columns() -> None:
    """If this failed, a weight that is stored by columns, with a dead row, would stop the analysis."""
    weight = random_rows(40, 200, dtype=torch.float32).t()
    weight[7] = 0
    found = pair_statistics(weight, Potential())
    plain = pair_statistics(weight.contiguous(), Potential())
    assert found.dead == (7,)
    assert found.mean_cosine == pytest.approx(plain.mean_cosine, abs=1e-9)
    assert found.mean_square_cosine == pytest.approx(plain.mean_square_cosine, rel=1e-6)


def test_planted_causes_lead() -> None:
    """If this failed, a user would be sent to the wrong remedy."""
    n, d = 512, 64
    causes = {
        "shared_direction": random_rows(n, d) + 0.5,
        "concentration": random_rows(n, 8) @ random_rows(8, d, seed=1),
        "close_pairs": torch.cat([random_rows(n, d), random_rows(n, d)[:26] + 0.01 * random_rows(26, d, seed=1)]),
    }
    for name, weight in causes.items():
        parts = divided(pair_statistics(weight, Potential()), Potential())
        assert max(vars(parts), key=lambda part: getattr(parts, part)) == name
        assert getattr(parts, name) > 0.5 * excess(pair_statistics(weight, Potential()), Potential())


def test_minilm(minilm_path: Path) -> None:
    """If this failed, a real layer's excess would not be divided as it was measured: most of it a shared direction."""
    from safetensors import safe_open

    with safe_open(f"{minilm_path}/model.safetensors", framework="pt") as file:
        statistics = pair_statistics(file.get_tensor("encoder.layer.0.intermediate.dense.weight"), Potential())
    parts = divided(statistics, Potential())
    assert excess(statistics, Potential()) == pytest.approx(0.0178, abs=5e-5)
    assert parts.shared_direction == pytest.approx(0.0140, abs=5e-5)
    assert parts.concentration == pytest.approx(0.0030, abs=5e-5)
    assert parts.close_pairs == pytest.approx(0.0008, abs=5e-5)


def test_no_excess_no_parts() -> None:
    """If this failed, an expected energy that diverges, or an energy of no pairs, would be divided into numbers."""
    moments = {"mean_cosine": 0.1, "mean_square_cosine": 0.2}
    assert crowding_parts(1.0, 10, 3, Potential(), **moments) == NONE
    assert crowding_parts(1.0, 10, 1, Potential(0), **moments) == NONE
    assert crowding_parts(math.inf, 10, 20, Potential(), **moments) == NONE
    alike = pair_statistics(torch.ones(5, 8), Potential())
    assert (alike.mean_cosine, alike.mean_square_cosine) == pytest.approx((1.0, 1.0))
    assert divided(alike, Potential()) == NONE


def test_bad_input_is_refused() -> None:
    """If this failed, a softened energy would be compared with one that is not."""
    moments = {"mean_cosine": 0.1, "mean_square_cosine": 0.2}
    with pytest.raises(MHEError, match=r"softening and closest must be 0, got 0\.1 and 0\.0"):
        crowding_parts(1.0, 10, 20, Potential(softening=0.1), **moments)
    with pytest.raises(MHEError, match="n must be"):
        crowding_parts(1.0, 1, 20, Potential(), **moments)

"""The statistics of a layer against the full matrix of cosines."""

from __future__ import annotations

import numpy
import pytest
import torch

from hf_mhe.energy import Potential, hyperspherical_energy, pair_statistics


def redundant_rows(n: int, d: int) -> torch.Tensor:
    """Random rows of which some nearly coincide, some are opposite, and none is zero."""
    weight = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64).float()
    weight[n // 2] = 3 * weight[1] + 0.05 * weight[2]
    weight[n - 1] = -2 * weight[3]
    return weight


@pytest.mark.parametrize("space", ["full", "half"])
@pytest.mark.parametrize(("n", "d"), [(6, 4), (200, 33), (1100, 48), (3072, 16)])
def test_every_statistic_by_brute_force(n: int, d: int, space: str) -> None:
    """If this failed, the report would name the wrong neighbours or count pairs twice where blocks meet."""
    weight = redundant_rows(n, d)
    potential = Potential(2.0, "euclidean", space)
    statistics = pair_statistics(weight, potential, duplicate_cosine=0.9, bins=20)
    unit = torch.nn.functional.normalize(weight.double(), dim=1)
    cos = unit @ unit.T
    pairs = cos[tuple(torch.triu_indices(n, n, offset=1))]
    others = cos - 3 * torch.eye(n, dtype=torch.float64)
    assert (statistics.n, statistics.d) == (n, d)
    assert statistics.max_cosine == pytest.approx(pairs.max().item(), abs=1e-6)
    assert statistics.min_cosine == pytest.approx(pairs.min().item(), abs=1e-6)
    assert statistics.nearest_pair == (1, n // 2)
    assert torch.allclose(statistics.nearest_cosine, others.amax(1).float(), atol=1e-6)
    near = (pairs.abs() if space == "half" else pairs) >= 0.9
    assert statistics.near_duplicates == int(near.sum())
    # A cosine within rounding of an edge may fall on either side of it.
    assert int(statistics.histogram.sum()) == n * (n - 1) // 2
    assert int((statistics.histogram - torch.histc(pairs, 20, -1, 1).long()).abs().sum()) <= 4
    assert statistics.coincident == (1 if space == "half" else 0)
    assert statistics.dead == ()
    if space == "full":
        assert statistics.energy == pytest.approx(hyperspherical_energy(weight.double()).item(), rel=1e-6)


@pytest.mark.parametrize("bins", [1, 2, 3, 20, 64, 180, 181, 1000])
@pytest.mark.parametrize("n", [2, 3, 40, 600])
def test_histogram_of_cosines_at_the_edges(n: int, bins: int) -> None:
    """If this failed, pairs at an edge, at 1 or at -1 would be lost, or counted in another bin than numpy's."""
    signs = torch.randint(0, 2, (n, 16), generator=torch.Generator().manual_seed(n)).double() * 2 - 1
    signs[1] = -signs[0]
    found = pair_statistics(signs, Potential(), bins=bins).histogram
    cos = (signs @ signs.T / 16)[tuple(torch.triu_indices(n, n, offset=1))]  # multiples of 1/8
    expected, _ = numpy.histogram(cos.numpy(), bins=bins, range=(-1, 1))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_coincident_pair_and_dead_rows_do_not_spoil_a_layer(dtype: torch.dtype) -> None:
    """If this failed, one duplicated neuron would turn a whole layer's energy into infinity."""
    weight = redundant_rows(40, 8).to(dtype)
    weight[7] = weight[11]
    weight[20] = 0
    weight[33] = 0
    statistics = pair_statistics(weight, Potential())
    assert statistics.coincident == 1
    assert statistics.dead == (20, 33)
    assert statistics.n == 38
    assert statistics.nearest_pair == (7, 11)
    live = [row for row in range(40) if row not in (20, 33)]
    unit = torch.nn.functional.normalize(weight[live].double(), dim=1)
    first, second = torch.triu_indices(38, 38, offset=1)
    chords = (unit[first] - unit[second]).square().sum(1)
    rest = chords[chords > 1e-25]
    assert len(rest) == 38 * 37 // 2 - 1
    assert statistics.energy == pytest.approx((1 / rest).mean().item(), rel=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.1, -1.0])
def test_a_multiple_is_the_same_direction(factor: float) -> None:
    """If this failed, a rescaled copy of a neuron would hide behind rounding and outweigh its whole layer."""
    weight = torch.randn(600, 40, generator=torch.Generator().manual_seed(2))
    weight[5] = factor * weight[400]
    space = "half" if factor < 0 else "full"
    statistics = pair_statistics(weight, Potential(space=space))
    assert statistics.coincident == 1
    without = pair_statistics(weight[torch.arange(600) != 5], Potential(space=space))
    assert statistics.energy == pytest.approx(without.energy, rel=1e-2)


def test_minilm_by_published_figures(minilm_path: object) -> None:
    """If this failed, a real checkpoint's energies would not be those that were measured with the dense formula."""
    from safetensors import safe_open

    with safe_open(f"{minilm_path}/model.safetensors", framework="pt") as file:
        first = pair_statistics(file.get_tensor("encoder.layer.0.intermediate.dense.weight"), Potential())
        last = pair_statistics(file.get_tensor("encoder.layer.5.output.dense.weight"), Potential())
    assert (round(first.energy, 4), round(first.max_cosine, 3)) == (0.5191, 0.954)
    assert (round(last.energy, 4), round(last.max_cosine, 3)) == (0.4998, 0.736)
    assert first.near_duplicates >= 1


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.ones(2, 3, 4), {}, r"shape \(n, d\).*got shape \(2, 3, 4\)"),
        (torch.zeros(4, 3), {}, "only 0 of 4 rows"),
        (torch.ones(4, 3) * float("nan"), {}, "not finite"),
        (torch.ones(4, 3, dtype=torch.int8), {}, "int8"),
        (torch.eye(3), {"duplicate_cosine": 1.5}, "duplicate_cosine must be a number above 0 and at most 1; got 1.5"),
        (torch.eye(3), {"bins": 0}, "bins must be at least 1; got 0"),
    ],
)
def test_bad_input_is_named(weight: torch.Tensor, options: dict[str, float], message: str) -> None:
    """If this failed, a mistake would surface as a number."""
    with pytest.raises(ValueError, match=message):
        pair_statistics(weight, Potential(), **options)

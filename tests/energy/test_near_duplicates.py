"""The list of near-duplicate pairs and their clusters, against a slow loop, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_mhe.energy import PairStatistics, Potential, pair_statistics
from hf_mhe.energy.near_duplicates import NearDuplicates
from hf_mhe.energy.walks.panels import Panel
from hf_mhe.errors import MHEError
from tests.energy.planted import Planted, plant

SPACES = ("full", "half")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
THRESHOLD = 0.95
Pair = tuple[int, int, float]


def found(weight: Tensor, space: str = "full", threshold: float = THRESHOLD, most: int = 10**6) -> PairStatistics:
    return pair_statistics(weight, Potential(space=space), duplicate_cosine=threshold, max_pairs=most)


def by_loop(weight: Tensor, space: str, threshold: float) -> list[Pair]:
    """Every pair that reaches the threshold, one by one in float64; what differs by rounding alone has a cosine of 1.

    Pairs at the threshold reach it whatever their last place says.
    """
    rows = [row / row.norm() for row in weight.double()]
    same = 1e-30 if weight.dtype == torch.float64 else (1.01 * 2.0**-24) ** 2
    pairs = []
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            for sign in (1, -1) if space == "half" else (1,):
                chord = float((rows[i] - sign * rows[j]).square().sum())
                if chord <= same or (threshold < 1 and chord <= 2 - 2 * threshold + 1e-15):
                    pairs.append((i, j, sign * (1.0 if chord <= same else 1 - chord / 2)))
    return sorted(pairs, key=lambda pair: (-abs(pair[2]), pair[:2]))


def connected(n: int, pairs: list[Pair]) -> list[tuple[int, ...]]:
    """The connected components of two or more rows, by painting over one colour with another."""
    colour = list(range(n))
    for i, j, _ in pairs:
        colour = [colour[i] if each == colour[j] else each for each in colour]
    groups = [tuple(row for row in range(n) if colour[row] == each) for each in set(colour)]
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


def assert_is(statistics: PairStatistics, expected: list[Pair], n: int) -> None:
    """The statistics list exactly these pairs, in an order that float64 can tell from theirs, and their clusters."""
    listed = statistics.duplicate_pairs
    assert {pair[:2] for pair in listed} == {pair[:2] for pair in expected}
    cosine = {(i, j): value for i, j, value in expected}
    assert all(abs(value - cosine[i, j]) <= 1e-14 for i, j, value in listed)
    assert list(listed) == sorted(listed, key=lambda pair: (-abs(pair[2]), pair[:2]))
    assert all(type(i) is type(j) is int and type(value) is float for i, j, value in listed)
    assert list(statistics.clusters) == connected(n, expected)
    assert statistics.near_duplicates == len(expected)


def at_every_distance(n: int, d: int, seed: int) -> Tensor:
    """Random rows of which half are copies of earlier ones: exact, rescaled, mirrored, moved, some twice over."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, d, generator=generator, dtype=torch.float64)
    for row in range(n // 2, n):
        source = int(torch.randint(0, row, (1,), generator=generator))
        move = float(torch.rand((), generator=generator))
        noise = 0.0 if move < 0.4 else 10 ** (-6 * move + 1) / math.sqrt(d)
        scale = 2.0 ** int(torch.randint(-3, 4, (1,), generator=generator))
        sign = 1 if torch.rand((), generator=generator) < 0.7 else -1
        weight[row] = (
            sign * scale * (weight[source] + noise * weight[source].norm() * weight[row] / weight[row].norm())
        )
    return weight


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (12, 2), (60, 5), (90, 40)])
def test_pairs_and_clusters_by_a_slow_loop(n: int, d: int, space: str, dtype: torch.dtype) -> None:
    """Else a report would name copies that are none, or keep silent about some."""
    for seed in range(3):
        weight = at_every_distance(n, d, seed).to(dtype)
        for threshold in (1.0, 0.999, THRESHOLD, 0.5):
            expected = by_loop(weight, space, threshold)
            statistics = found(weight, space, threshold)
            assert_is(statistics, expected, n)
            assert statistics.distinct == n - sum(len(cluster) - 1 for cluster in connected(n, expected))
            most = len(expected) // 2
            assert found(weight, space, threshold, most).duplicate_pairs == statistics.duplicate_pairs[:most]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_at_the_threshold_count_once_in_every_place(dtype: torch.dtype, space: str) -> None:
    """Else the list would end at another pair than the count does, where a cosine is the threshold itself."""
    # Rows at multiples of the angle whose cosine is 4/5, each in a plane of its own, all of them exact in float32.
    weight = torch.zeros(60, 40, dtype=dtype)
    for k in range(20):
        weight[3 * k, 2 * k], weight[3 * k + 1, 2 * k], weight[3 * k + 1, 2 * k + 1] = 5, 4, 3
        weight[3 * k + 2, 2 * k], weight[3 * k + 2, 2 * k + 1] = 7, 24
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    weight = weight[order] * torch.where(torch.arange(60) % 2 == 0, 1, -1 if space == "half" else 1).unsqueeze(1)
    statistics = found(weight, space, 0.8)
    assert statistics.near_duplicates == len(statistics.duplicate_pairs) == 40
    assert [len(cluster) for cluster in statistics.clusters] == [3] * 20
    assert statistics.distinct == 20
    beyond = found(weight, space, 0.8 + 1e-9)
    assert (beyond.near_duplicates, beyond.duplicate_pairs, beyond.clusters) == (0, (), ())


def planted(space: str, n: int = 2600, d: int = 32, dtype: torch.dtype = torch.float32) -> Planted:
    return plant(n, d, sizes=[2, 2, 3, 5, 8, 13, 21, 34, 50] * 4, space=space, seed=1, dtype=dtype)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_clusters_are_found_and_no_others(space: str, dtype: torch.dtype) -> None:
    """Else copies that lie in different blocks of the walk would not be found to be of one cluster."""
    rows = planted(space, dtype=dtype)
    statistics = found(rows.weight, space, most=5)
    assert statistics.clusters == rows.clusters
    assert statistics.near_duplicates == rows.pairs
    assert statistics.distinct == rows.distinct
    assert len(statistics.duplicate_pairs) == 5
    assert all(abs(cosine) == 1 for *_, cosine in statistics.duplicate_pairs)


@pytest.mark.parametrize("space", SPACES)
def test_order_scale_and_rotation_leave_the_clusters(space: str) -> None:
    """Else the same layer, with its neurons in another order or basis, would have other copies."""
    rows = planted(space, n=900, d=24)
    before = found(rows.weight, space)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(900, generator=generator)
    place = {int(row): new for new, row in enumerate(order)}
    moved = found(rows.weight[order], space)
    mapped = [tuple(sorted(place[row] for row in cluster)) for cluster in before.clusters]
    assert list(moved.clusters) == sorted(mapped, key=lambda cluster: (-len(cluster), cluster))
    ends = {tuple(sorted((place[i], place[j]))): cosine for i, j, cosine in before.duplicate_pairs}
    assert {(i, j): cosine for i, j, cosine in moved.duplicate_pairs} == ends

    lengths = 2.0 ** torch.randint(-40, 40, (900, 1), generator=generator)
    assert found(rows.weight * lengths, space).duplicate_pairs == before.duplicate_pairs
    if space == "half":
        signs = torch.where(torch.rand(900, 1, generator=generator) < 0.5, -1.0, 1.0)
        assert found(rows.weight * signs, space).clusters == before.clusters

    basis = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64))[0]
    turned = found(rows.weight.double() @ basis, space)
    assert turned.clusters == before.clusters
    cosines = {(i, j): cosine for i, j, cosine in before.duplicate_pairs}
    assert {pair[:2] for pair in turned.duplicate_pairs} == set(cosines)
    assert all(abs(cosine - cosines[i, j]) < 1e-12 for i, j, cosine in turned.duplicate_pairs)


@pytest.mark.parametrize("n", [3, 700])
def test_a_chain_is_one_cluster(n: int) -> None:
    """Else what a cluster is would depend on where one begins to look."""
    angle = 0.9 * math.acos(THRESHOLD)  # neighbours are within the threshold, the next but one is not
    weight = torch.zeros(n, n + 1, dtype=torch.float64)
    # Each step turns into a plane of its own, so that the chain does not come round again.
    weight[0, 0] = 1
    for step in range(1, n):
        weight[step] = math.cos(angle) * weight[step - 1]
        weight[step, step] = math.sin(angle)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    for rows in (weight, weight.flip(0), weight[order]):
        statistics = found(rows.float())
        assert statistics.near_duplicates == n - 1
        assert statistics.clusters == (tuple(range(n)),)
        assert statistics.distinct == 1


@pytest.mark.parametrize("space", SPACES)
def test_a_threshold_of_one_lists_the_copies_alone(space: str) -> None:
    """Else what may be merged without loss could not be told from what is merely alike."""
    weight = at_every_distance(700, 24, seed=5).float()
    statistics = found(weight, space, 1.0)
    assert statistics.coincident == len(statistics.duplicate_pairs) > 0
    assert {abs(cosine) for *_, cosine in statistics.duplicate_pairs} == {1.0}
    assert any(cosine < 0 for *_, cosine in statistics.duplicate_pairs) == (space == "half")
    assert [pair[:2] for pair in statistics.duplicate_pairs] == sorted(pair[:2] for pair in statistics.duplicate_pairs)


def test_multiples_are_copies_whatever_their_rounding() -> None:
    """Else copies would be listed in the order of the last bits of their multiples."""
    weight = torch.randn(300, 24, generator=torch.Generator().manual_seed(4))
    for place, factor in enumerate((3.0, 0.1, -0.7, 1e-3, 1 / 3, -7.0, 1.1)):
        weight[100 + place] = factor * weight[5]
    rows = [5, *range(100, 107)]
    statistics = found(weight, "half")
    signs = {5: 1, 100: 1, 101: 1, 102: -1, 103: 1, 104: 1, 105: -1, 106: 1}
    expected = [(i, j, float(signs[i] * signs[j])) for i in rows for j in rows if i < j]
    assert list(statistics.duplicate_pairs) == expected
    assert statistics.coincident == len(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "threshold"), [(2, 1.0), (300, 1.0), (1100, THRESHOLD)])
def test_a_layer_of_one_direction_is_one_cluster(n: int, threshold: float, dtype: torch.dtype) -> None:
    """Else the layer with the most to report would be the one that takes all memory, or is misreported."""
    row = torch.randn(1, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = row.repeat(n, 1) * 2.0 ** (torch.arange(n) % 5).unsqueeze(1).to(dtype)
    statistics = found(weight, threshold=threshold, most=30)
    assert statistics.clusters == (tuple(range(n)),)
    assert statistics.distinct == 1
    assert statistics.near_duplicates == n * (n - 1) // 2
    first = [(i, j, 1.0) for i in range(min(n, 40)) for j in range(i + 1, n)][:30]
    assert list(statistics.duplicate_pairs) == first


@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-6])
def test_the_closest_pairs_of_a_layer_within_a_degree(noise: float) -> None:
    """Else the list would be in the order of rounding errors where all pairs are alike to float32."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 16, generator=generator) + noise * torch.randn(1100, 16, generator=generator)
    rows = torch.nn.functional.normalize(weight.double(), dim=1)
    first, second = torch.triu_indices(1100, 1100, offset=1)
    chords = (rows[first] - rows[second]).square().sum(1)
    closest = chords.argsort(stable=True)[:20]
    statistics = found(weight, most=20)
    assert [pair[:2] for pair in statistics.duplicate_pairs] == [(int(first[k]), int(second[k])) for k in closest]
    assert [1 - pair[2] for pair in statistics.duplicate_pairs] == pytest.approx(
        (chords[closest] / 2).tolist(), rel=1e-6, abs=2e-16
    )
    assert statistics.clusters == (tuple(range(1100)),)


@pytest.mark.parametrize("space", SPACES)
def test_no_near_duplicates(space: str) -> None:
    """Else a layer without copies would show some."""
    for weight in (torch.eye(600, 700), torch.eye(2), torch.tensor([[1.0, 0.0], [0.7, 0.7], [0.0, 1.0]])):
        statistics = found(weight, space)
        assert (statistics.duplicate_pairs, statistics.clusters) == ((), ())
        assert statistics.distinct == statistics.n == len(weight)


def test_opposite_neurons_are_copies_in_half_space_alone() -> None:
    """Else full space would merge a neuron with its negation, which computes something else."""
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-2.0, 0.0, 0.0], [0.0, -1.0, 2.0**-10]])
    assert found(weight, "full").clusters == ()
    half = found(weight, "half")
    assert half.clusters == ((0, 2), (1, 3))
    assert half.duplicate_pairs[0] == (0, 2, -1.0)
    assert half.duplicate_pairs[1] == (1, 3, pytest.approx(-1 / math.sqrt(1 + 2.0**-20), abs=1e-15))
    assert half.distinct == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_rows_do_not_shift_the_numbers(dtype: torch.dtype) -> None:
    """Else a report would name the wrong neurons in a layer that has rows of zeros."""
    weight = planted("full", n=800, d=24, dtype=dtype).weight
    before = found(weight, most=50)
    dead = torch.tensor([0, 1, 17, 400, 700, 805])
    wider = torch.zeros(len(weight) + len(dead), weight.shape[1], dtype=dtype)
    live = torch.tensor([row for row in range(len(wider)) if row not in dead.tolist()])
    wider[live] = weight
    statistics = found(wider, most=50)
    assert statistics.dead == tuple(dead.tolist())
    assert statistics.clusters == tuple(tuple(int(live[row]) for row in cluster) for cluster in before.clusters)
    expected = tuple((int(live[i]), int(live[j]), cosine) for i, j, cosine in before.duplicate_pairs)
    assert statistics.duplicate_pairs == expected
    assert statistics.distinct == before.distinct


def test_the_list_is_as_long_as_asked() -> None:
    """Else the report of a vocabulary would carry millions of pairs."""
    weight = at_every_distance(300, 16, seed=2).float()
    everything = found(weight).duplicate_pairs
    assert len(everything) > 25
    assert len(pair_statistics(weight, Potential()).duplicate_pairs) == 20
    for most in (0, 1, 7, 10**9):
        statistics = found(weight, most=most)
        assert statistics.duplicate_pairs == everything[:most]
        assert statistics.clusters == found(weight).clusters


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "20", float("nan")])
def test_a_length_that_is_none_is_refused(value: object) -> None:
    """Else a mistyped limit would be taken for another one."""
    with pytest.raises(MHEError, match="max_pairs must be at least 0; got"):
        pair_statistics(torch.eye(3), Potential(), max_pairs=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("rows", "columns"), [(1400, 1400), (1400, 100), (64, 1400), (500, 300)])
def test_any_tiling_of_the_pairs_gives_the_same(rows: int, columns: int, space: str) -> None:
    """Else a GPU, which takes larger blocks, or the neurons that do not divide evenly would have other copies."""
    weight = torch.cat((planted(space, n=1300, d=24).weight, planted(space, n=1300, d=24).weight[:100] + 1e-4))
    expected = found(weight, space, most=50)
    unit = torch.nn.functional.normalize(weight, dim=1)
    for below in (False, True):  # each pair in the upper triangle, or in the lower one
        seen = NearDuplicates(THRESHOLD, weight.dtype, unit, weight, mirrored=space == "half", max_pairs=50)
        for row in range(0, 1400, rows):
            row_end = min(row + rows, 1400)
            square = unit[row:row_end] @ unit[row:row_end].t()
            seen.see(square.fill_diagonal_(0), Panel(row, row_end, row, row_end), -1, 1)
            for column in range(row_end, 1400, columns):
                panel = Panel(row, row_end, column, min(column + columns, 1400))
                panel = Panel(*panel[2:], *panel[:2]) if below else panel
                cos = unit[panel.row : panel.row_end] @ unit[panel.column : panel.column_end].t()
                seen.see(cos, panel, float(cos.min()), float(cos.max()))
        assert seen.count == expected.near_duplicates
        assert seen.clusters() == expected.clusters
        assert seen.pairs() == expected.duplicate_pairs

"""Near-duplicates against every pair's cosine in float64, at thresholds up to 1 and whatever the rounding."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import hf_mhe
from hf_mhe.energy import PairStatistics, Potential, pair_statistics
from hf_mhe.errors import MHEError

SPACES = ("full", "half")
# 16 rows of few dimensions are walked in float64, the others in float32: one square, and many blocks.
SIZES = [(16, 5), (200, 64), (700, 48), (300, 1024)]


def with_copies(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random rows: a third of them copies of rows before, a few of them mirrored, others moved by 1e-5 to 0.1."""
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(n, d, generator=generator, dtype=torch.float64)
    third = n // 3
    weight[third : 2 * third] = weight[:third]
    weight[third + 1] *= -1
    noise = torch.logspace(-5, -1, n - 2 * third, dtype=torch.float64).unsqueeze(1)
    moved = weight[: n - 2 * third] + noise * torch.randn(n - 2 * third, d, generator=generator, dtype=torch.float64)
    weight[2 * third :] = moved
    return weight.to(dtype)


def half_chords(weight: Tensor, space: str) -> Tensor:
    """`1 - c` of all pairs `i < j`, from differences of float64 rows, so that copies have an exact 0."""
    rows = weight.double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    near = (rows[first] - rows[second]).square().sum(1) / 2
    return torch.minimum(near, (rows[first] + rows[second]).square().sum(1) / 2) if space == "half" else near


def counted(weight: Tensor, space: str, threshold: float) -> PairStatistics:
    return pair_statistics(weight, Potential(space=space), duplicate_cosine=threshold)


@pytest.mark.story
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_threshold_of_one_counts_the_copies(n: int, d: int, space: str, dtype: torch.dtype) -> None:
    """Else exact copies would be lost to the rounding of a float32 cosine, and two columns of a report disagree."""
    weight = with_copies(n, d, dtype)
    copies = int((half_chords(weight, space) == 0).sum())
    assert copies >= n // 3 - (space == "full")
    found = counted(weight, space, 1.0)
    assert (found.near_duplicates, found.coincident) == (copies, copies)


@pytest.mark.story
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_every_threshold_counts_the_pairs_that_reach_it(n: int, d: int, space: str) -> None:
    """Else the count would be that of another threshold, off by the error of a product, or fall as it is lowered."""
    weight = with_copies(n, d)
    chords = half_chords(weight, space)
    at_pairs = [1 - float(chord) for chord in chords[chords.argsort()][:: max(1, len(chords) // 20)]]
    before = 0
    for threshold in sorted({1.0, 1 - 1e-9, 1 - 1e-7, 1 - 3e-6, 0.9999, 0.95, 0.5, 1e-3, *at_pairs}, reverse=True):
        if not 0 < threshold <= 1:
            continue
        found = counted(weight, space, threshold)
        # The pairs within the last places of float64 of the threshold may count either way.
        surely = max(found.coincident, int((chords <= 1 - threshold - 1e-14).sum()))
        assert surely <= found.near_duplicates <= int((chords <= 1 - threshold + 1e-14).sum())
        assert before <= found.near_duplicates
        before = found.near_duplicates


def test_a_pair_at_the_threshold_reaches_it() -> None:
    """Else the last place of a number such as 0.8, which no float is, would decide whether 4/5 reaches it."""
    for a, b, c in [(3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (9, 40, 41), (119, 120, 169)]:
        for leg in (a, b):
            other = math.isqrt(c * c - leg * leg)
            weight = torch.tensor([[1.0, 0.0], [leg, other]])
            assert counted(weight, "full", leg / c).near_duplicates == 1
            assert counted(weight, "full", leg / c + 1e-9).near_duplicates == 0


@pytest.mark.parametrize("threshold", [1.0, 0.99, 0.9])
@pytest.mark.parametrize("space", SPACES)
def test_neither_order_nor_length_nor_width_matters(space: str, threshold: float) -> None:
    """Else the same neurons, shuffled, rescaled or stored wider, would have another number of duplicates."""
    weight = with_copies(400, 96, torch.bfloat16)
    expected = counted(weight, space, threshold).near_duplicates
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(weight), generator=generator)
    assert counted(weight[order], space, threshold).near_duplicates == expected
    powers = 2.0 ** torch.randint(-30, 30, (len(weight), 1), generator=generator)
    for changed in (
        weight * powers.bfloat16(),
        weight.float() * 1e30,
        weight.float() * 1e-30,
        weight.double() * 1e200,
    ):
        assert counted(changed, space, threshold).near_duplicates == expected
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert torch.equal(weight.to(dtype).to(torch.bfloat16), weight)
        assert counted(weight.to(dtype), space, threshold).near_duplicates == expected
    if space == "half":
        mirrored = torch.where(torch.rand(len(weight), 1, generator=generator) < 0.5, -weight, weight)
        assert counted(mirrored, space, threshold).near_duplicates == expected


@pytest.mark.slow
def test_a_layer_that_has_collapsed() -> None:
    """Else the layer where every pair is a duplicate, many blocks of them, would be the one that is miscounted."""
    row = torch.randn(1, 60, generator=torch.Generator().manual_seed(1))
    found = counted(row.repeat(1300, 1), "full", 1.0)
    assert found.near_duplicates == found.coincident == 1300 * 1299 // 2


@pytest.mark.parametrize("value", [0, -0.5, -1.0, 1.0000001, float("nan"), float("inf"), True, "0.9", None, [0.9]])
def test_a_value_out_of_range_is_one_error_at_the_door(value: Any) -> None:
    """Else a mistyped threshold would be blamed on a layer, after the model was read, or counted as another."""
    message = "duplicate_cosine must be a number above 0 and at most 1; got "
    with pytest.raises(MHEError) as from_energy:
        pair_statistics(torch.eye(3), Potential(), duplicate_cosine=value)
    with pytest.raises(MHEError) as from_analysis:
        hf_mhe.analyze("no/such-model", duplicate_cosine=value)  # nothing is looked for before the check
    assert str(from_energy.value) == str(from_analysis.value) == f"{message}{value!r}"


@pytest.mark.parametrize("value", [1, numpy.float32(0.75), Fraction(3, 4)])
def test_any_real_number_will_do(value: Any) -> None:
    """Else a threshold computed with numpy would be refused, or leave a report that cannot be saved as JSON."""
    report = hf_mhe.analyze(torch.nn.Sequential(torch.nn.Linear(4, 6)), duplicate_cosine=value)
    assert type(report.duplicate_cosine) is float
    assert report.duplicate_cosine == float(value)

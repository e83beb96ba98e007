"""The spectrum of a weight, beside numpy's SVD of all of it in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_mhe.energy import Spectrum, spectrum
from hf_mhe.errors import MHEError
from tests.energy.cases import random_rows

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def by_svd(weight: Tensor) -> tuple[float, float, float, int]:
    """The four numbers by their definitions; the rank by numpy's own function, with the tolerance of the dtype."""
    matrix = weight.double().numpy()
    sigma = np.linalg.svd(matrix, compute_uv=False)
    share = sigma / sigma.sum()
    entropy = -sum(float(p) * math.log(p) for p in share if p > 0)
    eps = np.finfo(np.float64 if weight.dtype == torch.float64 else np.float32).eps
    rank = int(np.linalg.matrix_rank(matrix, tol=sigma[0] * max(matrix.shape) * eps))
    return float(sigma[0]), float(np.linalg.norm(matrix) ** 2 / sigma[0] ** 2), math.exp(entropy), rank


def assert_right(weight: Tensor, relative: float = 1e-9) -> None:
    found = spectrum(weight)
    norm, stable, effective, rank = by_svd(weight)
    assert found.spectral_norm == pytest.approx(norm, rel=relative)
    assert found.stable_rank == pytest.approx(stable, rel=relative)
    assert found.effective_rank == pytest.approx(effective, rel=relative)
    assert found.numerical_rank == rank


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (2, 2), (3, 7), (7, 3), (64, 64), (512, 16), (16, 512), (130, 129)])
def test_of_random_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """If this failed, norms and ranks of ordinary layers would be wrong."""
    assert_right(random_rows(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(96, 48), (48, 96), (64, 64)])
@pytest.mark.parametrize("rank", [1, 2, 8, 40])
def test_of_few_directions(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    """If this failed, a Gram matrix, which loses what is below 1e-8 of the largest, would decide about a rank."""
    n, d = shape
    weight = (random_rows(n, rank) @ random_rows(rank, d)).to(dtype)
    assert_right(weight, relative=1e-6)
    if dtype in (torch.float32, torch.float64):
        assert spectrum(weight).numerical_rank == rank


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
def test_of_singular_values_down_to_rounding(smallest: float) -> None:
    """If this failed, float64 weights would have the ranks of float32 ones, or lose their small singular values."""
    size = 32
    left, right = (torch.linalg.qr(random_rows(size, size, seed)).Q for seed in (0, 1))
    sigma = torch.logspace(0, math.log10(smallest), size, dtype=torch.float64)
    weight = left @ torch.diag(sigma) @ right
    found = spectrum(weight)
    assert found.numerical_rank == int((sigma > size * 2.0**-52).sum())
    share = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-9)


def test_the_numbers_of_a_diagonal() -> None:
    """If this failed, the definitions would be others than those in the docstring."""
    weight = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0]))
    found = spectrum(weight)
    assert found.spectral_norm == pytest.approx(3.0)
    assert found.stable_rank == pytest.approx(10 / 9)
    assert found.effective_rank == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert found.numerical_rank == 2


def test_dead_rows_and_lengths_count() -> None:
    """If this failed, these would be numbers of directions, as all others of a report are, and not of the weight."""
    rows = torch.eye(4)
    assert spectrum(rows).effective_rank == pytest.approx(4)
    dead = torch.cat([rows[:2], torch.zeros(2, 4)])
    assert spectrum(dead) == Spectrum(1.0, 2.0, pytest.approx(2.0), 2)
    assert spectrum(torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e-3]))).effective_rank < 3.02


@pytest.mark.parametrize("shape", [(2, 3), (5, 2)])
def test_of_zeros(shape: tuple[int, int]) -> None:
    """If this failed, an untouched adapter, B = 0, would end a report in a division by zero."""
    assert spectrum(torch.zeros(shape)) == Spectrum(0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float64, 1e-300),
        (torch.float64, 1e200),
        (torch.float32, 1e-30),
        (torch.float32, 1e30),
        (torch.float16, 1e-4),
    ],
)
def test_scale_is_only_in_the_norm(dtype: torch.dtype, scale: float) -> None:
    """If this failed, squares would overflow or vanish in layers of unusual scale."""
    weight = random_rows(20, 12).to(dtype)
    scaled = (weight.double() * scale).to(dtype)
    found, plain = spectrum(scaled), by_svd(scaled.double() / scale)
    relative = 1e-9 if dtype != torch.float16 else 1e-2
    assert found.spectral_norm / scale == pytest.approx(plain[0], rel=relative)
    assert (found.stable_rank, found.effective_rank) == pytest.approx(plain[1:3], rel=relative)
    assert found.numerical_rank == 12


@pytest.mark.parametrize("rank", [24, 5])
@pytest.mark.parametrize("wide", [False, True])
def test_in_blocks(rank: int, wide: bool) -> None:
    """If this failed, a vocabulary, which is read in blocks, would have other numbers than a small layer."""
    rows = (1 << 22) // 24 + 1000  # a little more than one block
    weight = random_rows(rows, rank) @ random_rows(rank, 24)
    assert_right(weight.t() if wide else weight)


def test_leaves_the_weight_and_needs_no_gradient() -> None:
    """If this failed, asking for a spectrum would change a model, or keep a graph alive."""
    weight = torch.nn.Parameter(random_rows(6, 4, dtype=torch.float32))
    before = weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = spectrum(weight)
    assert torch.equal(weight, before)
    assert weight.grad is None
    assert found == spectrum(before)
    strided = torch.empty(4, 6).t().copy_(before)
    assert spectrum(strided).effective_rank == pytest.approx(found.effective_rank, rel=1e-12)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.ones(3), r"shape \(3,\)"),
        (torch.ones(2, 3, 4), r"shape \(2, 3, 4\)"),
        (torch.ones(2, 3, dtype=torch.int64), "int64"),
        (torch.tensor([[1.0, math.nan], [1.0, 1.0]]), "not finite"),
        (torch.tensor([[1.0, -math.inf], [1.0, 1.0]]), "not finite"),
        (torch.ones(2, 3, device="meta"), "meta device"),
        ([[1.0, 2.0], [3.0, 4.0]], "torch.Tensor"),
    ],
    ids=["rank 1", "rank 3", "integers", "NaN", "infinite", "meta", "list"],
)
def test_bad_input(weight: Tensor, said: str) -> None:
    """If this failed, a weight without singular values would have some, or end in an error of LAPACK."""
    with pytest.raises(MHEError, match=said):
        spectrum(weight)

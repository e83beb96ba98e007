"""Potentials that are bounded where neurons nearly coincide, and the push on those that do."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hf_mhe.energy import Potential
from hf_mhe.energy.autograd.share import energy_share
from hf_mhe.energy.estimators.sampled import sampled_energy_of
from hf_mhe.energy.functional import energy_of
from hf_mhe.energy.walks.definition import dense_energy
from hf_mhe.errors import MHEError

VARIANTS = list(itertools.product((0.0, 1.0, 2.0, 2.5), ("euclidean", "angular"), ("full", "half")))
EDGE = 0.1**0.5


def crowded(n: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Pairs at every distance: near duplicates, nearly opposite ones, and a fifth of the rows in one narrow cone."""
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    rows[5] = rows[7] + 1e-2 * rows[8]
    rows[9] = -2 * rows[10] + 1e-2 * rows[11]
    rows[20 : 20 + n // 5] = rows[3] + 0.1 * rows[20 : 20 + n // 5]
    return rows.to(dtype)


def graded(weight: Tensor, potential: Potential) -> tuple[float, Tensor]:
    leaf = weight.detach().clone().requires_grad_()
    energy = energy_of(leaf, potential)
    energy.backward()
    assert leaf.grad is not None
    return energy.item(), leaf.grad


def by_shares(weight: Tensor, potential: Potential, cut: int) -> tuple[float, Tensor]:
    parts = [weight[:cut].clone().requires_grad_(), weight[cut:].clone().requires_grad_()]
    shares = [energy_share(part, weight, start, potential) for part, start in zip(parts, (0, cut), strict=True)]
    torch.stack(shares).sum().backward()
    return sum(share.item() for share in shares), torch.cat([part.grad for part in parts])  # type: ignore[misc]


def tangent(cos: float, s: float, distance: str) -> float:
    """`f(c)`, which from the edge on goes along its tangent, by the definition."""
    edge = 1 - 0.5 * EDGE**2
    c = min(cos, edge)
    rho = math.sqrt(2 - 2 * c) if distance == "euclidean" else math.acos(c)
    slope_of_rho = -1 / rho if distance == "euclidean" else -1 / math.sin(rho)
    value = rho**-s if s else -math.log(rho)
    slope = (-s * rho ** (-s - 1) if s else -1 / rho) * slope_of_rho
    return value + slope * (cos - c)


def at_antipodes(s: float, distance: str) -> float:
    rho = 2 if distance == "euclidean" else math.pi
    return rho**-s if s else -math.log(rho)


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
def test_close_pairs_count_by_the_tangent(s: float, distance: str, space: str) -> None:
    """The default penalty would be another one than the documentation says."""
    rows = torch.nn.functional.normalize(crowded(30, 4), dim=1)
    points = torch.cat((rows, -rows)) if space == "half" else rows
    cosines = (points @ points.t()).clamp(-1, 1)
    n = len(points)
    total = sum(tangent(float(cosines[i, j]), s, distance) for i in range(n) for j in range(n) if i != j)
    potential = Potential(s, distance, space, closest=EDGE)  # type: ignore[arg-type]
    assert graded(rows, potential)[0] == pytest.approx(total / (n * (n - 1)), rel=1e-9)


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 70, 600])
def test_rows_that_coincide_count_by_the_tangent_too(
    n: int, dtype: torch.dtype, s: float, distance: str, space: str
) -> None:
    """A layer widened by copies would stop the training with a NaN."""
    rows = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=dtype).expand(n, 8)
    near, far = tangent(1.0, s, distance), at_antipodes(s, distance)
    expected = near if space == "full" else (2 * n * (n - 1) * (near + far) + 2 * n * far) / (2 * n * (2 * n - 1))
    energy, gradient = graded(rows, Potential(s, distance, space, closest=EDGE))  # type: ignore[arg-type]
    assert energy == pytest.approx(expected, rel=1e-6)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(40, 3), (300, 4), (1200, 6)])
def test_every_walk_knows_the_tangent(n: int, d: int, dtype: torch.dtype, s: float, distance: str, space: str) -> None:
    """The energy of a layer would depend on how many rows it has and who walks it."""
    potential = Potential(s, distance, space, closest=EDGE)  # type: ignore[arg-type]
    weight = crowded(n, d, dtype)
    reference = weight.double().clone().requires_grad_()
    expected = dense_energy(reference, potential, reduction="mean")
    (wanted,) = torch.autograd.grad(expected, reference)
    value, slope = (1e-6, 1e-5) if dtype == torch.float32 else (1e-12, 1e-7)  # the oracle's arccos has no more
    for energy, gradient in (graded(weight, potential), by_shares(weight, potential, n // 3)):
        assert energy == pytest.approx(expected.item(), rel=value)
        assert (gradient.double() - wanted).norm() <= slope * wanted.norm()


def test_no_close_pair_no_difference() -> None:
    """The default would not be the energy of the paper where no two neurons nearly coincide."""
    rows = torch.randn(20, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for (energy, gradient), (exact, wanted) in (
        (graded(rows, Potential(closest=EDGE, parts=True)), graded(rows, Potential())),
        (by_shares(rows, Potential(closest=EDGE, parts=True), 7), by_shares(rows, Potential(), 7)),
    ):
        assert energy == pytest.approx(exact, rel=1e-14)
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-16)


def copies(dtype: torch.dtype = torch.float64, count: int = 5) -> Tensor:
    """Row 2 again in every seventh row from 4 on, in half of them twice as long."""
    rows = torch.randn(60, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    for k in range(count):
        rows[4 + 7 * k] = (1 + k % 2) * rows[2]
    return rows


@pytest.mark.parametrize(
    "potential", [Potential(closest=EDGE), Potential(softening=0.3), Potential(1.0, "angular", "half", 0.3)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_copies_are_pushed_along_ways_of_their_own(potential: Potential, dtype: torch.dtype) -> None:
    """What is equal would stay equal, or two of three copies go the same way."""
    rows, among = copies(dtype), [2, *range(4, 39, 7)]
    pushing = Potential(potential.s, potential.distance, potential.space, potential.softening, potential.closest, True)
    energy, still = graded(rows, potential)
    same, moving = graded(rows, pushing)
    assert same == energy  # the push is none of the energy
    length = rows.double().norm(dim=1, keepdim=True)
    push = ((moving.double() - still.double()) * length)[among]
    others = [row for row in range(60) if row not in among]
    assert torch.equal(moving[others], still[others])
    apart = torch.nn.functional.normalize(push, dim=1)
    assert (apart @ apart.t()).fill_diagonal_(-1).max() < 0.95
    # As hard as so many pairs at a right angle, and along the sphere.
    one = 2 * potential.slope_at(2**0.5) * potential.scale_of(60, "mean")
    assert 0.1 * one < push.norm(dim=1).min() <= push.norm(dim=1).max() <= 5.1 * one
    assert (push * torch.nn.functional.normalize(rows[among].double(), dim=1)).sum(1).abs().max() < 2**-5 * one


@pytest.mark.parametrize("cut", [1, 3, 18, 40])
@pytest.mark.parametrize("space", ["full", "half"])
@pytest.mark.parametrize("count", [5, 8])
def test_the_push_is_the_same_however_the_rows_are_divided(cut: int, space: str, count: int) -> None:
    """Ranks would push the same neuron in different ways, and one process in another one."""
    rows = copies(count=count)
    rows[33] = -3 * rows[2]  # which coincides in half space
    potential = Potential(space=space, closest=EDGE, parts=True)  # type: ignore[arg-type]
    _, whole = graded(rows, potential)
    _, divided = by_shares(rows, potential, cut)
    torch.testing.assert_close(divided, whole, rtol=1e-10, atol=1e-13)
    if space == "half":
        assert (whole - graded(rows, Potential(space="half", closest=EDGE))[1])[33].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_of_copies_alone_parts(dtype: torch.dtype) -> None:
    """A vocabulary of added tokens, more copies than are recomputed one by one, would stay one point."""
    rows = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).to(dtype).repeat(300, 1)
    potential = Potential(space="half", closest=EDGE, parts=True)
    energy, gradient = graded(rows, potential)
    assert math.isfinite(energy)
    assert torch.unique(gradient, dim=0).shape[0] == 300
    _, divided = by_shares(rows, potential, 100)
    torch.testing.assert_close(divided, gradient, rtol=1e-4, atol=1e-8)


def test_a_sample_meets_copies() -> None:
    """A budget would bring the infinite energy back."""
    potential = Potential(space="half", closest=EDGE, parts=True)
    rows = copies().requires_grad_()
    energy = sampled_energy_of(
        rows, potential, rows=20, dead="skip_negligible", generator=torch.Generator().manual_seed(0)
    )
    energy.backward()
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()
    whole = sampled_energy_of(
        rows, potential, rows=60, dead="skip_negligible", generator=torch.Generator().manual_seed(0)
    )
    assert whole.item() == pytest.approx(graded(rows.detach(), potential)[0], rel=1e-12)


@pytest.mark.parametrize("closest", [-0.1, 1.5, float("nan"), "near", True])
def test_the_edge_is_a_chord(closest: object) -> None:
    """A tangent from beyond a right angle on would be a mistake in the units."""
    with pytest.raises(MHEError, match="closest must be"):
        Potential(closest=closest)  # type: ignore[arg-type]

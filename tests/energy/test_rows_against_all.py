"""Shares of rows against the exact walk over all of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hf_mhe.energy import hyperspherical_energy
from hf_mhe.energy.autograd.share import energy_share
from hf_mhe.energy.potential import Potential
from hf_mhe.errors import MHEError
from tests.energy.cases import random_rows
from tests.oracle import DISTANCES, SPACES

VARIANTS = list(itertools.product((0.0, 1.0, 2.0, 2.5), DISTANCES, SPACES))


def by_shares(weight: Tensor, potential: Potential, cuts: list[int]) -> tuple[Tensor, Tensor]:
    """The sum of the shares, and the gradients of the owners below each other."""
    owned = [weight[a:b].clone().requires_grad_() for a, b in itertools.pairwise([0, *cuts, len(weight)])]
    starts = [0, *cuts]
    shares = [energy_share(own, weight, start, potential) for own, start in zip(owned, starts, strict=True)]
    torch.stack(shares).sum().backward()
    return torch.stack(shares).sum().detach(), torch.cat([own.grad for own in owned])  # type: ignore[misc]


def exact(weight: Tensor, potential: Potential) -> tuple[Tensor, Tensor]:
    weight = weight.clone().requires_grad_()
    energy = hyperspherical_energy(
        weight,
        potential.s,
        distance=potential.distance,
        space=potential.space,
        softening=potential.softening,
        dead="skip",
    )
    energy.backward()
    assert weight.grad is not None
    return energy.detach(), weight.grad


def check(weight: Tensor, potential: Potential, cuts: list[int], value: float, gradient: float) -> None:
    (energy, grad), (expected, expected_grad) = by_shares(weight, potential, cuts), exact(weight, potential)
    assert energy.dtype == expected.dtype
    assert energy.item() == pytest.approx(expected.item(), rel=value)
    assert (grad - expected_grad).abs().max().item() <= gradient * expected_grad.abs().max().item()


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
@pytest.mark.parametrize("softening", [0.0, 0.3])
def test_shares_add_up_for_every_potential(s: float, distance: str, space: str, softening: float) -> None:
    """Processes that divide the rows of a layer would train with another energy than one process does."""
    potential = Potential(s, distance, space, softening)  # type: ignore[arg-type]
    check(random_rows(33, 7), potential, [17], 1e-13, 1e-11)


@pytest.mark.parametrize("cuts", [[], [17], [0, 1], [5, 5, 32], [33]])
def test_any_division_will_do(cuts: list[int]) -> None:
    """Uneven shards, and processes that own no row at all, would be wrong."""
    check(random_rows(33, 7), Potential(space="half"), cuts, 1e-13, 1e-11)


@pytest.mark.parametrize("space", SPACES)
def test_many_blocks_in_float32(space: str) -> None:
    """The walk in blocks would lose a corner of the rectangle, or float32's digits."""
    check(random_rows(1700, 24, dtype=torch.float32), Potential(space=space), [600, 1300], 1e-6, 1e-5)  # type: ignore[arg-type]


def test_bfloat16_rows_keep_their_dtype() -> None:
    """A gradient of another dtype than its parameter would be refused by autograd."""
    weight = random_rows(40, 8, dtype=torch.bfloat16)
    check(weight, Potential(), [13], 1e-6, 2**-7)


@pytest.mark.parametrize(("s", "distance", "space"), VARIANTS)
def test_near_duplicates_across_the_cut(s: float, distance: str, space: str) -> None:
    """Two neurons that nearly coincide, each with another owner, would be lost to cancellation or counted twice."""
    weight = random_rows(300, 96, dtype=torch.float32)
    weight[200] = weight[10] + 1e-4 * weight[11]
    weight[201] = -weight[12] + 1e-4 * weight[13]
    weight[20] = weight[21] + 1e-4 * weight[11]  # and one pair that has one owner
    check(weight, Potential(s, distance, space), [150], 1e-5, 1e-5)  # type: ignore[arg-type]


def test_a_collapsed_layer_across_the_cut() -> None:
    """A layer whose neurons have all but one direction has more close pairs than the pairwise way was made for."""
    weight = (random_rows(1, 96) + 1e-2 * random_rows(300, 96)).float()
    check(weight, Potential(), [100], 1e-5, 1e-4)


def test_dead_rows_belong_to_nobody() -> None:
    """Pruned neurons on one process would shift the rows of the others."""
    weight = random_rows(33, 7)
    weight[[0, 16, 17, 18, 32]] = 0
    check(weight, Potential(space="half"), [17, 20], 1e-13, 1e-11)
    _, grad = by_shares(weight, Potential(), [17, 20])
    assert not grad[[0, 16, 17, 18, 32]].any()


def test_a_layer_of_zeros_has_no_energy_yet() -> None:
    """LoRA's second factor starts at zero, sharded or not."""
    energy, grad = by_shares(torch.zeros(6, 3), Potential(space="half"), [3])
    assert energy.item() == 0
    assert not grad.any()


def test_coinciding_rows_are_infinite_for_both_owners() -> None:
    """Only one of two processes would notice, and the other would wait for it."""
    weight = random_rows(8, 3)
    weight[6] = weight[1]
    for start, stop in ((0, 4), (4, 8)):
        assert energy_share(weight[start:stop], weight, start, Potential()).item() == float("inf")


def test_diverged_rows_are_refused_by_every_owner() -> None:
    """Only one of two processes would stop, and the other would wait for it."""
    weight = random_rows(8, 3)
    weight[6, 1] = float("nan")
    for start, stop in ((0, 4), (4, 8)):
        with pytest.raises(MHEError, match=r"not finite .*row 6"):
            energy_share(weight[start:stop], weight, start, Potential())


def test_rows_that_do_not_lie_within_are_refused() -> None:
    """A wrong offset would compare neurons with themselves."""
    weight = random_rows(8, 3)
    for own, start in ((weight[4:], 5), (weight[:, :2], 0), (weight[0], 0), (weight[:4], -1)):
        with pytest.raises(MHEError, match=r"own rows of shape .* within all rows, of shape \(8, 3\)"):
            energy_share(own, weight, start, Potential())

"""The energy of members that are several matrices, from sums over blocks, against stacked directions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mhe.energy import Potential, across
from hf_mhe.energy.across import Place, add_gradient_, gram, places_in, slope_of
from tests.oracle import slow_energy

CLOSEST = 0.1**0.5
SHAPES = ((7, 5), (3, 4, 2), (40,))


def members(k: int = 5, *, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """For each matrix those of the members: of different lengths, some of them near each other."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in SHAPES:
        base = torch.randn(shape, generator=generator, dtype=torch.float64)
        each = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(k)]
        each[1] = base + 0.05 * each[1]
        each[2] = 3 * base + 0.2 * each[2]
        each[3] = -0.1 * base + 0.001 * each[3]  # opposite
        found.append([tensor.to(dtype) for tensor in each])
    return found


def walk(
    slots: Sequence[Sequence[Tensor]], potential: Potential, parts: Sequence[tuple[int, int]] = ((0, 10**6),)
) -> tuple[float, list[list[Tensor]]]:
    """The energy and the gradient, where each of some ranks has a run of the first axis of every matrix."""
    pieces = [[[tensor[start : start + length] for tensor in slot] for slot in slots] for start, length in parts]
    grams = sum(torch.stack([gram(slot, potential) for slot in piece]) for piece in pieces)
    assert isinstance(grams, Tensor)
    slope = slope_of(grams, [slot[0].numel() for slot in slots], potential)
    gradients = [[torch.zeros_like(tensor) for tensor in slot] for slot in slots]
    for piece, (start, length) in zip(pieces, parts, strict=True):
        for j, slot in enumerate(piece):
            shape = slots[j][0].shape
            run = (min(start, shape[0]), min(length, max(0, shape[0] - start)))
            places = [Place(tuple(places_in(shape, run=run)), len(slots) * a + j) for a in range(len(slot))]
            into = [gradient[start : start + length] for gradient in gradients[j]]
            push = None if slope.push is None else slope.push[j]
            add_gradient_(into, slot, slope.weights[j], push, places, potential)
    return float(slope.energy), gradients


def slow(slots: Sequence[Sequence[Tensor]], potential: Potential) -> tuple[float, list[list[Tensor]]]:
    leaves = [[tensor.double().clone().requires_grad_() for tensor in slot] for slot in slots]
    rows = torch.cat([torch.stack([(t / t.norm()).flatten() for t in slot]) for slot in leaves], 1)
    tangent = 1 - potential.closest**2 / 2 if potential.closest else None
    energy = slow_energy(rows, potential.s, potential.distance, softening=potential.softening, tangent_above=tangent)
    energy.backward()
    return energy.item(), [[leaf.grad for leaf in slot if leaf.grad is not None] for slot in leaves]


def close(found: list[list[Tensor]], expected: list[list[Tensor]], tolerance: float) -> None:
    for a, b in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


POTENTIALS = [
    Potential(s, distance, softening=softening, closest=closest)  # type: ignore[arg-type]
    for s in (0.0, 1.0, 2.0)
    for distance in ("euclidean", "angular")
    for softening, closest in ((0.0, 0.0), (0.3, 0.0), (0.0, CLOSEST))
]


@pytest.mark.parametrize("potential", POTENTIALS, ids=str)
@pytest.mark.parametrize("block", [1, 11, 1 << 20])
def test_value_and_gradient_are_the_definitions(potential: Potential, block: int, monkeypatch: Any) -> None:
    """The penalty would be that of something else than directions on a product of spheres, or lose a block."""
    monkeypatch.setattr(across, "_BLOCK", block)
    energy, gradients = walk(members(), potential)
    expected, expected_gradients = slow(members(), potential)
    assert energy == pytest.approx(expected, rel=1e-10)
    close(gradients, expected_gradients, 1e-8)


@pytest.mark.parametrize("copies", [False, True])
def test_ranks_with_a_part_each_have_the_gradient_of_the_whole(copies: bool) -> None:
    """A rank's part of the gradient, or of what parts copies, would depend on which part it has."""
    slots = members()
    if copies:
        slots = [[slot[0], 2 * slot[0], *slot[2:4], slot[0]] for slot in slots]
    potential = Potential(closest=CLOSEST, parts=True)
    energy, gradients = walk(slots, potential)
    of_parts, gradients_of_parts = walk(slots, potential, [(0, 1), (1, 0), (1, 2), (3, 100)])
    assert of_parts == pytest.approx(energy, rel=1e-13)
    close(gradients_of_parts, gradients, 1e-12)


def test_copies_go_apart_as_hard_as_at_a_right_angle() -> None:
    """Upcycled experts would stay equal, or be thrown apart harder than anything else is pushed."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(50, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    potential = Potential(closest=CLOSEST, parts=True)
    _, ((one, other), _) = walk([[first, first], [second, second]], potential)
    # At a right angle the slope is 1/2, and with both orders of the pair in the mean the push is as long. Of two
    # matrices each has 1/sqrt(2) of it, and moves the direction by 1/sqrt(2) of what it turns.
    assert one.norm() * first.norm() == pytest.approx(0.25, rel=0.1)
    close([[one]], [[-other]], 1e-12)
    steps = [first - 10 * one, first - 10 * other]
    cosine = (steps[0] * steps[1]).sum() / steps[0].norm() / steps[1].norm()
    assert 1 - cosine > 1e-6
    without = walk([[first, first], [second, second]], Potential(closest=CLOSEST))[1]
    close(without, [[torch.zeros_like(t) for t in slot] for slot in without], 1e-12)


def test_every_pair_of_copies_parts() -> None:
    """Of many copies some would go the same way, and stay copies."""
    tensor = torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, (pushes,) = walk([[tensor] * 12], Potential(closest=CLOSEST, parts=True))
    rows = torch.nn.functional.normalize(torch.stack([push.flatten() for push in pushes]), dim=1)
    cosines = (rows @ rows.t()).fill_diagonal_(-1)
    assert cosines.max() < 0.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_summed_in_full(dtype: torch.dtype) -> None:
    """Inner products of millions of bfloat16 numbers would be rounded to three digits."""
    potential = Potential(closest=CLOSEST)
    slots = [[t.repeat(300, *[1] * (t.dim() - 1)) for t in slot] for slot in members(dtype=dtype)]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in a training step
        slots = [[t.to(dtype) for t in slot] for slot in slots]
    energy, gradients = walk(slots, potential)
    expected, expected_gradients = slow(slots, potential)
    assert energy == pytest.approx(expected, rel=1e-5)
    for a, b in zip(itertools.chain(*gradients), itertools.chain(*expected_gradients), strict=True):
        assert (a.double() - b).abs().max() <= 2 * torch.finfo(dtype).eps * b.abs().max() + 1e-7


def test_a_member_without_a_direction_takes_no_part() -> None:
    """An expert whose output starts at zero would make the penalty a NaN."""
    slots, potential = members(), Potential(closest=CLOSEST)
    slots[1][4] = torch.zeros_like(slots[1][4])
    energy, gradients = walk(slots, potential)
    expected, others = slow([slot[:4] for slot in slots], potential)
    assert energy == pytest.approx(expected, rel=1e-10)
    close([slot[:4] for slot in gradients], others, 1e-9)
    assert all(not slot[4].any() for slot in gradients)
    alone, nothing = walk([[t, torch.zeros_like(t)] for t in (slot[0] for slot in slots)], potential)
    assert alone == 0
    assert not any(gradient.any() for gradient in itertools.chain(*nothing))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(value: float) -> None:
    """A weight that broke would be left out in silence, as if it were a dead one."""
    slots = members()
    slots[2][1][3] = value
    assert not torch.isfinite(torch.tensor(walk(slots, Potential(closest=CLOSEST))[0]))


class Largest(TorchDispatchMode):
    """The elements of the largest tensor for which memory is taken."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in [*args, *(kwargs or {}).values()] if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in known:
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
        return out


def test_no_more_than_a_block_is_copied(monkeypatch: Any) -> None:
    """Experts that just fit on a device would not be trained there."""
    monkeypatch.setattr(across, "_BLOCK", 1 << 10)
    stack = torch.randn(8, 96, 64)
    slots, potential = (
        [list(stack.unbind()), list(stack.transpose(1, 2).unbind())],
        Potential(closest=CLOSEST, parts=True),
    )
    into = torch.zeros_like(stack)
    with Largest() as largest:
        grams = torch.stack([gram(slot, potential) for slot in slots])
        slope = slope_of(grams, [96 * 64] * 2, potential)
        places = [Place(tuple(each[0] for each in places_in((1, 96, 64))), 0)] * 8
        add_gradient_(list(into.unbind()), slots[0], slope.weights[0], 1e-3 * slope.weights[1], places, potential)
    assert into.any()
    assert 8 * 96 <= largest.elements <= 1 << 10

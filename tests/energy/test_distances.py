"""What every distance in the table has to keep to, whichever it is, and that an unknown one is nobody's."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import numpy as np
import pytest
import torch

from hf_mhe import choices
from hf_mhe.cli import options
from hf_mhe.energy import Potential, energy_lower_bound, expected_energy, hyperspherical_energy, separation_penalty
from hf_mhe.energy.distances.chord import Chord
from hf_mhe.energy.distances.spherical import SphericalDistance
from hf_mhe.energy.distances.table import DISTANCES
from hf_mhe.energy.sphere import angles
from hf_mhe.errors import MHEError
from tests.energy.cases import random_rows
from tests.oracle import RHO

ANGLES = torch.cat([torch.tensor([1e-6, 1e-3]), torch.linspace(0.05, 3.09, 60), math.pi - torch.tensor([1e-3, 1e-6])])
ANGLES = ANGLES.double()


def chords(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`|u - v|` and `|u + v|` of two unit vectors at these angles."""
    return 2 * torch.sin(theta / 2), 2 * torch.cos(theta / 2)


def test_the_table_the_names_and_the_oracle_agree() -> None:
    """If this failed, a distance would be offered that nothing computes, or computed and tested by nobody."""
    assert tuple(DISTANCES) == get_args(choices.Distance) == tuple(RHO)
    assert [choice.value for choice in options.Distance] == list(DISTANCES)
    assert [choice.value for choice in options.Space] == list(get_args(choices.Space))


@pytest.mark.parametrize("name", DISTANCES)
def test_the_faces_of_a_distance_are_one_function(name: str) -> None:
    """If this failed, the walk, the expectation and the bound would be of different distances."""
    rho, (near, far) = DISTANCES[name], chords(ANGLES)
    expected = RHO[name](near, far)
    assert torch.allclose(rho.from_chords(near, far), expected, rtol=1e-12, atol=0)
    square, _ = rho.squared_from_chords(near.square(), far.square())
    assert torch.allclose(square, expected.square(), rtol=1e-12, atol=0)
    assert np.allclose(rho.of_angle(ANGLES.numpy()), expected.numpy(), rtol=1e-12, atol=0)
    cos = torch.cos(ANGLES[2:-2])  # a cosine keeps half of the digits at the ends
    assert torch.allclose(rho.squared(cos).sqrt(), expected[2:-2], rtol=1e-10, atol=0)
    assert np.allclose(rho.of_cosine(cos.numpy()), expected[2:-2].numpy(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", DISTANCES)
def test_its_derivatives_are_those_of_its_values(name: str) -> None:
    """If this failed, the gradient of a new distance would not be the derivative of its energy."""
    rho, between = DISTANCES[name], ANGLES[2:-2]
    cos = torch.cos(between).requires_grad_()
    (slope,) = torch.autograd.grad(rho.squared(cos).sum(), cos)
    near, far = chords(between)
    _, inner = rho.squared_from_chords(near.square(), far.square())
    assert torch.allclose(torch.as_tensor(inner, dtype=slope.dtype).expand_as(slope), -0.5 * slope, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", DISTANCES)
def test_its_ends_are_as_it_says(name: str) -> None:
    """If this failed, mirror images would have a wrong energy, or a kink be taken for a smooth minimum."""
    rho, step = DISTANCES[name], 1e-6
    start, before, end = rho.of_angle(np.array([step, math.pi - step, math.pi]))
    assert end == pytest.approx(rho.at_antipodes, rel=1e-12)
    assert (end - before) / step == pytest.approx(rho.slope_at_antipodes, abs=1e-6)
    assert start / step == pytest.approx(rho.slope_at_zero, rel=1e-6)
    assert Potential(distance=name).two_sided == (rho.slope_at_antipodes > 0)


@pytest.mark.parametrize("name", DISTANCES)
def test_it_is_increasing_and_concave(name: str) -> None:
    """If this failed, equally spaced directions would not be optimal in the plane, as the bound takes for granted."""
    rho = DISTANCES[name].of_angle(np.linspace(0, math.pi, 400))
    steps = np.diff(rho)
    assert (steps > 0).all()
    assert (np.diff(steps) <= 1e-12).all()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("d", "s"), [(2, 0.3), (3, 0.0), (3, 0.9), (8, 1.0), (64, 2.0), (768, 3.5), (20000, 1.0)])
def test_the_quadrature_that_every_distance_inherits(d: int, s: float, mirrored: bool) -> None:
    """If this failed, a distance without closed forms would be compared with a wrong random draw: the chord's are
    known, and integrated here as if they were not."""
    chord = Chord()
    assert SphericalDistance.mean(chord, d, s) == pytest.approx(chord.mean(d, s), rel=1e-10)
    inherited = SphericalDistance.std(chord, d, s, mirrored=mirrored)
    assert inherited == pytest.approx(chord.std(d, s, mirrored=mirrored), rel=1e-8)


def test_a_mean_that_no_float_holds_is_infinite() -> None:
    """If this failed, a large exponent would stop with an overflow for a distance whose typical value is below 1."""
    for s in (400.0, 498.0):
        assert angles.mean(lambda theta: theta / 1000, 1e-3, 1000, s) == math.inf
        assert angles.std(lambda theta: theta / 1000, 1e-3, 1000, s, mirrored=True) == math.inf


@pytest.mark.parametrize("name", ["cosine", "Euclidean", "", None, 2])
def test_an_unknown_distance_is_refused_everywhere(name: object) -> None:
    """If this failed, a misspelt distance would be computed as another one, without an error."""
    right = "distance must be one of " + ", ".join(map(repr, DISTANCES))
    for call in (
        lambda: Potential(distance=name),
        lambda: dataclasses.replace(Potential(), distance=name),
        lambda: hyperspherical_energy(random_rows(3, 3), distance=name),
        lambda: separation_penalty(random_rows(3, 3), distance=name),
        lambda: expected_energy(3, 3, distance=name),
        lambda: energy_lower_bound(3, 3, distance=name),
    ):
        with pytest.raises(MHEError, match=right):
            call()

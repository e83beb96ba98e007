"""Further potentials in one walk: equal to what each gives alone, and to the definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_mhe.energy import VARIANTS, Potential, pair_statistics
from hf_mhe.errors import MHEError
from tests import oracle
from tests.energy.cases import random_rows
from tests.oracle import quick_energy

FURTHER = (Potential(0.5), Potential(3.7, "angular", "half"), Potential(2, softening=0.1), Potential(closest=0.3))


def with_close_pairs(n: int, d: int) -> Tensor:
    """Random rows with near-copies on either side of float32's reach, a near-antipode, and a shared direction."""
    weight = random_rows(n, d) + 0.1
    for step, row in zip((1e-1, 1e-2, 1e-4, 1e-6), (1, 3, 5, 7), strict=True):
        weight[row] = 2 * weight[row - 1] + step * weight[row]
    weight[9] = -weight[8] + 1e-3 * weight[9]
    return weight


def crowded(n: int, d: int) -> Tensor:
    """So many close pairs that blocks of them are recomputed as a whole."""
    return torch.ones(n, d, dtype=torch.float64) + 1e-3 * random_rows(n, d)


CASES = {
    "two rows": random_rows(2, 3),
    "small": with_close_pairs(12, 5),
    "one square": with_close_pairs(300, 24),
    "small cosines": random_rows(560, 450),
    "panels": with_close_pairs(700, 48),
    "crowded": crowded(600, 16),
}


def test_the_twelve_are_the_papers() -> None:
    """If this failed, a table would print energies under the names of others."""
    assert [(each.s, each.distance, each.space) for each in VARIANTS] == oracle.VARIANTS


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_each_is_what_it_is_alone(case: str, dtype: torch.dtype) -> None:
    """If this failed, a number would depend on what else was asked for in the same walk."""
    weight = CASES[case].to(dtype)
    together = pair_statistics(weight, Potential(), variants=VARIANTS + FURTHER)
    assert list(together.variants) == [*VARIANTS, *FURTHER]
    for potential, energy in together.variants.items():
        alone = pair_statistics(weight, potential)
        assert energy == pytest.approx(alone.energy, rel=1e-6, abs=1e-7)
    assert together.energy == together.variants[Potential()]
    plain = pair_statistics(weight, Potential())
    assert together.energy == plain.energy
    assert together.equivalent_dimension == plain.equivalent_dimension


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_is_its_definition(case: str) -> None:
    """If this failed, all would be wrong alike."""
    weight = CASES[case].float()
    found = pair_statistics(weight, Potential(), variants=VARIANTS).variants
    for potential, energy in found.items():
        expected = quick_energy(weight, potential.s, potential.distance, potential.space).item()
        assert energy == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_copies_are_left_out_by_each_space() -> None:
    """If this failed, one copy would make eight of the twelve infinite, or a mirror image be one in full space."""
    weight = random_rows(80, 12, dtype=torch.float32)
    weight[1], weight[3] = 2 * weight[0], -weight[2]
    found = pair_statistics(weight, Potential(), variants=VARIANTS).variants
    for potential, energy in found.items():
        alone = pair_statistics(weight, potential)
        assert alone.coincident == (2 if potential.space == "half" else 1)
        assert math.isfinite(energy)
        assert energy == pytest.approx(alone.energy, rel=1e-6)
    many = random_rows(16, 12, dtype=torch.float32).repeat(40, 1)  # blocks of which are recomputed as a whole
    found = pair_statistics(many, Potential(), variants=VARIANTS).variants
    for potential, energy in found.items():
        assert energy == pytest.approx(pair_statistics(many, potential).energy, rel=1e-6)
    alike = pair_statistics(torch.ones(5, 3), Potential(), variants=VARIANTS).variants
    assert all(math.isnan(energy) for potential, energy in alike.items() if potential.space == "full")


@pytest.mark.parametrize("variants", ["all", [2.0], [Potential(), "half"]], ids=str)
def test_what_is_no_potential_is_named(variants: Any) -> None:
    """If this failed, a name of a space would surface as an error of an attribute."""
    with pytest.raises(MHEError, match="variants must be potentials"):
        pair_statistics(torch.eye(3), Potential(), variants=variants)

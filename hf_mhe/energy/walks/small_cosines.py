"""A block of small cosines: the sum of any potential over it, from the sums of their powers."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.workspace import scratch

# Note [Small cosines]
# Neurons in many dimensions are nearly orthogonal: of the five million pairs of a random layer of 3072 x 768 none has
# a cosine above 0.2. There the common potentials are polynomials of degree 8, to less than the last place of a
# float32, and the sum of a polynomial over a block is its coefficients times the sums of powers: one sum or dot
# product each, which take a twentieth of an arccosine's time. So where only the value is wanted, and the potential
# costs more than that, a block whose extremes allow it is summed by powers. Nothing is assumed of the block: with a
# larger cosine in it, it is evaluated as every other. A dot product adds in a row, and is off by 2e-4 where all
# cosines are alike; it is left the fifth power and up, a thousandth of the sum. Rejected: the same for the slopes,
# whose polynomial has to be evaluated, one pass a coefficient; a higher degree, whose powers cost what they save.
_DEGREE = 8
_REACHES = (0.25, 0.2, 0.16)
_TOLERANCE = 5e-8  # of the smallest value that the potential has within reach
_FASTER_WITHOUT = {
    ("euclidean", "full", 0),
    ("euclidean", "full", 1),
    ("euclidean", "full", 2),
    ("euclidean", "half", 0),
    ("euclidean", "half", 2),
}


class PowerSeries(NamedTuple):
    """`F(c) = sum_k coefficients[k] c^k` where `|c| <= reach`."""

    reach: float
    coefficients: tuple[float, ...]

    def holds(self, extremes: tuple[float, float]) -> bool:
        """Whether a block with this smallest and largest cosine lies within reach; not if one of them is NaN."""
        low, high = extremes
        return low >= -self.reach and high <= self.reach

    @property
    def odd(self) -> bool:
        """Whether it has odd powers."""
        return any(self.coefficients[1::2])

    def total(self, powers: list[float]) -> float:
        """`sum F(c)` over a block with these sums of powers."""
        return sum(coefficient * power for coefficient, power in zip(self.coefficients, powers, strict=True))


def series_that_pays(potential: Potential) -> PowerSeries | None:
    """The potential for small cosines; None where a block is summed as fast without, or powers are not accurate."""
    if (potential.distance, potential.space, potential.s) in _FASTER_WITHOUT:
        return None
    return power_series(potential)


@lru_cache(maxsize=64)
def power_series(potential: Potential) -> PowerSeries | None:
    """The potential for small cosines; None where powers are not accurate.

    Least squares on Chebyshev nodes, accepted where its error is small on them and between them.
    """
    exponents = range(0, _DEGREE + 1, 2 if potential.space == "half" else 1)
    nodes = torch.linspace(0, math.pi, 257, dtype=torch.float64, device="cpu").cos()
    powers = torch.stack([nodes**exponent for exponent in exponents], dim=1)
    for reach in _REACHES:
        values = potential.value(reach * nodes)
        found = torch.linalg.lstsq(powers[::4], values[::4, None]).solution.squeeze(1)
        error = (powers @ found - values).abs().max()
        if float(error) <= _TOLERANCE * float(values.abs().min()):
            coefficients = [0.0] * (_DEGREE + 1)
            for exponent, coefficient in zip(exponents, found.tolist(), strict=True):
                coefficients[exponent] = coefficient / reach**exponent
            return PowerSeries(reach, tuple(coefficients))
    return None


def power_sums_(cos: Tensor, pairs: int, *, odd: bool) -> list[float]:
    """`sum c^k` over a block of small cosines for k = 0 … 8, the odd ones 0 unless `odd`; overwrites it.

    Args:
        cos: float32, contiguous, zero where it holds no pair.
        pairs: how many it holds.
        odd: whether the odd powers are wanted.
    """
    first = cos.view(-1)
    second = scratch("powers", first.numel(), cos.dtype, cos.device)
    torch.mul(first, first, out=second)
    sums = [float(pairs)] + [0.0] * _DEGREE
    if odd:
        sums[1] = float(first.sum())
    sums[2] = float(second.sum())
    if odd:
        third = first.mul_(second)
        sums[3], sums[5], sums[6] = float(third.sum()), float(third.dot(second)), float(third.dot(third))
        fourth = second.square_()
        sums[7] = float(third.dot(fourth))
    else:
        fourth = torch.mul(second, second, out=first)
        sums[6] = float(fourth.dot(second))
    sums[4], sums[8] = float(fourth.sum()), float(fourth.dot(fourth))
    return sums

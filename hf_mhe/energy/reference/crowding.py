"""How crowded random directions are, by their dimension; and the dimension in which they would be as crowded.

Note [Equivalent dimension]
The crowding of a layer is the mean over its pairs of `F(c) = 1 / (2.1 − 2c) + 1 / (2.1 + 2c)`: the pair function of
s = 2, euclidean, half space, with a softening of ε² = 0.1, whatever potential a report is asked for. With
z = 4 / 4.41 it is `F(c) = F(0) (1 + g(c))`, `g(c) = z c² / (1 − z c²)`. Computed is the mean of g, the excess, which
keeps its digits where neurons are nearly orthogonal: in dimension δ, c² ~ Beta(1/2, (δ − 1)/2), so that

    E g   = z / δ · ₂F₁(1, 3/2; δ/2 + 1; z),      E g² = 3 z² / (δ (δ + 2)) · ₂F₁(2, 5/2; δ/2 + 2; z),

for every real δ >= 1. E g falls from z / (1 − z) at δ = 1, where all neurons are collinear, to 0. Its inverse at the
excess of a layer is the dimension in which independent random directions would be as crowded. A mean over pairs, it
does not grow with their number, as a score does; bounded, it is continuous where neurons coincide. Small cosines enter
as c², close pairs more. Divided by the layer's own dimension it is the spread. Rejected: `1 / mean c²` alone, to which
a pair of copies is no more than ten right angles.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

_SOFTENED = 2.1  # 2 + ε²
Z = 4 / _SOFTENED**2
ORTHOGONAL = 2 / _SOFTENED  # F(0)
COLLINEAR = Z / (1 - Z)  # the excess of neurons that are all on one line
# Below it ₂F₁ is 1 to the last digits but two.
_SMALLEST_EXCESS = 1e-12


# Note [A series of positive terms]
# With c of at least 1.5 the terms of ₂F₁(a, b; c; z) are all positive and fall at least as fast as k zᵏ, so a sum of
# 512 of them has every digit. Rejected: scipy's hyp2f1, which is not a number for many c beyond 100, such as 151.5.
_K = np.arange(512)


def _hypergeometric(a: float, b: float, c: float) -> float:
    """₂F₁(a, b; c; Z) for c of at least 1.5 and small a, b."""
    return 1.0 + float(np.cumprod(Z * (a + _K) * (b + _K) / ((c + _K) * (1 + _K))).sum())


def random_excess(dimension: float) -> float:
    """The mean of g over independent random directions in a dimension >= 1, which need not be an integer."""
    return Z / dimension * _hypergeometric(1.0, 1.5, dimension / 2 + 1)


def random_crowding(dimension: float) -> float:
    """X(δ), the mean of F over independent random directions; `inf` is a dimension too."""
    return ORTHOGONAL if dimension == math.inf else ORTHOGONAL * (1 + random_excess(dimension))


def dimension_of_excess(excess: float) -> float:
    """The dimension whose random directions have this excess: 1 from `COLLINEAR` on, `inf` at 0 and below."""
    from scipy.optimize import brentq

    if math.isnan(excess):
        return math.nan
    if excess >= COLLINEAR:
        return 1.0
    if excess <= 0 or COLLINEAR / excess == math.inf:
        return math.inf
    if excess < _SMALLEST_EXCESS:
        return Z / excess
    # ₂F₁ lies between 1 and its value at δ = 1, which is 1 / (1 − z).
    lowest, highest = max(1.0, Z / excess), COLLINEAR / excess
    return float(brentq(lambda dimension: random_excess(dimension) - excess, lowest, highest, rtol=1e-14))


@lru_cache(maxsize=4096)
def random_excess_std(n: int, d: float) -> float:
    """The standard deviation of the mean of g over the pairs of n independent random directions.

    The cosines of independent directions are pairwise independent, so the variances of the pairs add.
    """
    square = 3 * Z**2 / (d * (d + 2)) * _hypergeometric(2.0, 2.5, d / 2 + 2)
    return math.sqrt(max(0.0, square - random_excess(d) ** 2) / (n * (n - 1) / 2))


@lru_cache(maxsize=4096)
def equivalent_dimension_std(n: int, d: int) -> float:
    """The standard deviation, to first order, of the equivalent dimension of n independent random directions."""
    step = 1e-4 * d
    below = max(1.0, d - step)
    slope = (random_excess(d + step) - random_excess(below)) / (d + step - below)
    return random_excess_std(n, d) / abs(slope)


def equivalent_dimension_z(dimension: float, n: int, d: int) -> float:
    """How far an equivalent dimension is above that of n random directions in d, in standard deviations.

    Taken where the numbers are means, of the excess. Rejected: (dimension − d) / `equivalent_dimension_std`, the same
    to first order; of a few neurons the dimension has no second moment, and orthogonal ones would have an infinite z.
    """
    excess = 0.0 if dimension == math.inf else random_excess(dimension)
    return (random_excess(d) - excess) / random_excess_std(n, d)

"""The potential: the scalar function of the cosine between two neurons whose sum over pairs is an energy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar, get_args

import torch
from torch import Tensor

from hf_mhe.checks import check_number, check_option
from hf_mhe.choices import Distance, Space
from hf_mhe.energy.distances.spherical import SphericalDistance
from hf_mhe.energy.distances.table import DISTANCES

_SPACES = get_args(Space)
_Number = TypeVar("_Number", float, Tensor)


RIGHT_ANGLE = 2**0.5  # as a chord


@dataclass(frozen=True)
class Potential:
    """What one pair of neurons contributes to the energy, as a function of the cosine between them.

    Write `f(c) = f_s(rho(c))` with `f_s(rho) = rho^(-s)` for `s > 0` and `log(1 / rho)` for `s = 0`, and
    `rho = sqrt(2 - 2c)` (euclidean) or `arccos(c)` (angular). The pair function is `F(c) = f(c)` in full space and
    `F(c) = f(c) + f(-c)` in half space, where every neuron also stands for its mirror image. Source: Liu et al.,
    "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, eq. (1)-(3) and the half-space MHE of section 3.3.

    Args:
        s: exponent of the Riesz kernel, any finite number >= 0.
        distance: a name in `hf_mhe.energy.distances.table`: `"euclidean"` (chord length) or `"angular"` (arc length,
            radians).
        space: `"full"` or `"half"`.
        softening: Plummer softening `eps >= 0`: `rho^2` becomes `rho^2 + eps^2`; 0 is the exact energy.
        closest: the chord, up to sqrt(2), below which `f(c)` goes on along its tangent in the cosine, so that value
            and slope stay bounded, and the energy exact where no pair is closer; 0, for nowhere, is the exact energy.
        parts: whether gradients push rows that coincide apart; see Note [Copies].

    Raises:
        MHEError: an option is unknown, or a number is negative, too large or not finite.
    """

    s: float = 2.0
    distance: Distance = "euclidean"
    space: Space = "full"
    softening: float = 0.0
    closest: float = 0.0
    parts: bool = False

    def __post_init__(self) -> None:
        check_number("s", self.s)
        check_number("softening", self.softening)
        check_number("closest", self.closest, at_most=RIGHT_ANGLE, right="a chord of at most sqrt(2)")
        check_option("distance", self.distance, tuple(DISTANCES))
        check_option("space", self.space, _SPACES)

    def plain(self) -> tuple[float, str, str, float, float, bool]:
        """The fields in the types that an operator's schema has: `Potential(*plain)` is the same potential."""
        bounds = float(self.softening), float(self.closest), self.parts
        return float(self.s), self.distance, self.space, *bounds

    def describe(self) -> str:
        """One phrase for tables and cards, such as `"s=2, euclidean, full space"`."""
        softened = f", softening {self.softening:g}" if self.softening else ""
        return f"s={self.s:g}, {self.distance}, {self.space} space{softened}"

    @property
    def rho(self) -> SphericalDistance:
        """The distance itself."""
        return DISTANCES[self.distance]

    # Two-sided: the pair function, or its derivative, is also singular where two neurons point in opposite
    # directions. In half space because the mirror image is near; for the angular distance because d arccos(c) / dc
    # is unbounded there, although the gradient on the sphere is not.
    @property
    def two_sided(self) -> bool:
        """Whether pairs with a cosine near -1 need the same care as pairs near +1."""
        return self.space == "half" or self.rho.slope_at_antipodes != 0

    def mean_of(self, pair_sum: _Number, n: int, reduction: str = "mean", *, coincident: int = 0) -> _Number:
        """Turn `sum_{i != j} F(c_ij)` (ordered pairs) over n neurons into the energy, the sum or its mean.

        `coincident` unordered pairs that were left out of the sum are left out of the mean's denominator too.
        """
        if self.space == "half":
            energy = 2 * pair_sum + 2 * n * self.mirror_energy()
            pairs = 2 * n * (2 * n - 1) - 8 * coincident
        else:
            energy, pairs = pair_sum, n * (n - 1) - 2 * coincident
        if reduction == "sum":
            return energy
        return energy / pairs if pairs else energy * math.nan

    def scale_of(self, n: int, reduction: str) -> float:
        """The factor between `sum_{i != j} F(c_ij)` and the energy that `mean_of` returns: its slope."""
        if self.space == "half":
            return 2.0 if reduction == "sum" else 1.0 / (n * (2 * n - 1))
        return 1.0 if reduction == "sum" else 1.0 / (n * (n - 1))

    def mirror_energy(self) -> float:
        """`f(-1)`: what a neuron and its own mirror image contribute in half space."""
        square = self.rho.at_antipodes**2 + self.softening**2
        return -0.5 * math.log(square) if self.s == 0 else square ** (-0.5 * self.s)

    def value(self, cos: Tensor) -> Tensor:
        """`F(c)`, elementwise and differentiable by autograd: the definition as it is written, for the oracle."""
        # Only rounding takes a cosine beyond 1, where arccos is NaN; within, the clamp changes nothing.
        cos = cos.clamp(-1, 1)
        value = self._value_of_one_side(cos)
        return value + self._value_of_one_side(-cos) if self.space == "half" else value

    def _value_of_one_side(self, cos: Tensor) -> Tensor:
        if not self.closest:
            return self._exact_value(cos)
        edge = 1 - 0.5 * self.closest**2
        inside = cos.clamp(max=edge)
        return self._exact_value(inside) + self.slope_at(self.closest) * (cos - inside)

    def _exact_value(self, cos: Tensor) -> Tensor:
        square = self.rho.squared(cos) + self.softening**2
        return -0.5 * torch.log(square) if self.s == 0 else square ** (-0.5 * self.s)

    def from_chords(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        """`(F, dF/dc)` from the squared chords `|u - v|^2` and `|u + v|^2`, elementwise, in their own dtype.

        The two sum to 4 for unit vectors. Handing over both keeps every digit where one of them is tiny, which
        `2 - 2c` has lost by then.
        """
        value, slope = self._one_side_from_chords(near, far)
        if self.space == "half":
            mirrored_value, mirrored_slope = self._one_side_from_chords(far, near)
            value, slope = value + mirrored_value, slope - mirrored_slope
        return value, slope

    def slope_at(self, chord: float) -> float:
        """`df/dc` of a pair at so large a chord."""
        near = torch.tensor(chord * chord, dtype=torch.float64, device="cpu")
        return float(self._one_side_from_chords(near, 4 - near)[1])

    def _one_side_from_chords(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        if not self.closest:
            return self._exact_from_chords(near, far)
        edge = self.closest**2
        value, slope = self._exact_from_chords(near.clamp(min=edge), far.clamp(max=4 - edge))
        # Not a product with zero elsewhere: opposite rows have an infinite slope where the arc is a function of `c`.
        return torch.where(near < edge, value + slope * (edge - near).mul(0.5), value), slope

    def _exact_from_chords(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        square, inner = self.rho.squared_from_chords(near, far)
        square = square + self.softening**2
        if self.s == 0:
            return -0.5 * torch.log(square), inner / square
        value = square ** (-0.5 * self.s)
        return value, self.s * inner * value / square

"""What a distance has to say of itself, so that its energy, gradient, expectation and lower bound can be computed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor

from hf_mhe.energy.sphere import angles


class SphericalDistance(ABC):
    """A distance `rho` between two directions, as a function of the angle between them.

    `rho` is increasing and concave on [0, pi], and 0 at 0 with a positive slope. Two things follow for every s, and
    are taken for granted: `f_s(rho)` is decreasing and convex in the angle, so that equally spaced directions are
    optimal in the plane; and its mean over random directions diverges from `s = d - 1` on.

    Nothing else is needed: `walks/closed_forms.py` and `walks/triton_walk` have faster forms of the common distances,
    and fall back on `squared_from_chords`, or on torch, for one that they do not know.

    Attributes:
        at_antipodes: `rho(pi)`, the largest value.
        slope_at_antipodes: `drho/dangle` at pi. Where it is not 0, the energy of two opposite directions has a kink,
            like `|x|`, and its derivative by the cosine is unbounded.
        slope_at_zero: `drho/dangle` at 0.
    """

    at_antipodes: float
    slope_at_antipodes: float
    slope_at_zero: float = 1.0

    @abstractmethod
    def squared(self, cos: Tensor) -> Tensor:
        """`rho^2` of cosines in [-1, 1], elementwise and differentiable: the definition as it is written."""

    @abstractmethod
    def squared_from_chords(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor | float]:
        """`rho^2` and `-d(rho^2)/dc / 2` from the squared chords `|u - v|^2` and `|u + v|^2`, elementwise."""

    @abstractmethod
    def from_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """`rho` from the chords `|u - v|` and `|u + v|` (not squared), elementwise and differentiable."""

    @abstractmethod
    def of_angle(self, theta: np.ndarray) -> np.ndarray:
        """`rho` of angles in [0, pi]."""

    def of_cosine(self, cos: np.ndarray) -> np.ndarray:
        """`rho` of cosines in [-1, 1]."""
        return self.of_angle(np.arccos(cos))

    def mean(self, d: int, s: float) -> float:
        """The mean of `f_s(rho)` over two independent uniform directions in dimension d >= 2, for `s < d - 1`."""
        return angles.mean(self._of_one_angle, self.slope_at_zero, d, s)

    def std(self, d: int, s: float, *, mirrored: bool) -> float:
        """The standard deviation of `f(c)`, or `mirrored` of `f(c) + f(-c)`, for `2 s < d - 1`."""
        return angles.std(self._of_one_angle, self.slope_at_zero, d, s, mirrored=mirrored)

    def _of_one_angle(self, theta: float) -> float:
        return float(self.of_angle(theta))  # type: ignore[arg-type]

    @abstractmethod
    def lower_bound(self, n: int, d: int, s: float) -> float:
        """A number that the mean of `f_s` over the pairs of no n directions in dimension d >= 3 lies below."""

    @abstractmethod
    def lower_bound_of_lines(self, n: int, d: int, s: float) -> float:
        """The same of the mean of `f(c) + f(-c)` over the pairs of n lines."""

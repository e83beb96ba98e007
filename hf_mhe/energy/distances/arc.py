"""The angular distance: the arc `arccos(c)`, in radians. Its bound in full space is a linear program."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hf_mhe.energy.distances.chord import Chord
from hf_mhe.energy.distances.spherical import SphericalDistance
from hf_mhe.energy.sphere import levenshtein


class Arc(SphericalDistance):
    """`rho` is the angle itself: of density `∝ sin^(d-2)` on [0, pi] for random directions."""

    at_antipodes = math.pi
    slope_at_antipodes = 1.0

    def squared(self, cos: Tensor) -> Tensor:
        return torch.arccos(cos).square()

    def squared_from_chords(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor | float]:
        angle = 2 * torch.atan2(near.sqrt(), far.sqrt())
        # rho drho/dc = -theta / sin(theta), and sin(theta) = sqrt(near * far) / 2; its limit at theta = 0 is 1.
        return angle.square(), torch.where(near > 0, 2 * angle / (near * far).sqrt(), torch.ones_like(near))

    def from_chords(self, near: Tensor, far: Tensor) -> Tensor:
        return 2 * torch.atan2(near, far)

    def of_angle(self, theta: np.ndarray) -> np.ndarray:
        return theta

    def mean(self, d: int, s: float) -> float:
        if d > 2:
            return super().mean(d, s)
        # The angle is uniform on [0, π].
        return math.exp(-s * math.log(math.pi) - math.log1p(-s)) if s > 0 else 1.0 - math.log(math.pi)

    def std(self, d: int, s: float, *, mirrored: bool) -> float:
        if s == 0 and d == 2:  # −log(θ/π) is exponential with mean 1, and E log U log(1 − U) = 2 − π²/6
            return math.sqrt(4.0 - math.pi**2 / 3) if mirrored else 1.0
        return super().std(d, s, mirrored=mirrored)

    def lower_bound(self, n: int, d: int, s: float) -> float:
        from hf_mhe.energy.sphere.linear_program import angular_bound

        degree = levenshtein.largest_tau(n, d, projective=False)
        return angular_bound(n, d, s, degree=degree, euclidean_bound=Chord().lower_bound(n, d, s))

    def lower_bound_of_lines(self, n: int, d: int, s: float) -> float:
        return levenshtein.mean_over_lines(n, d, s, self.of_cosine)

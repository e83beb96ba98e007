"""The euclidean distance: the chord `sqrt(2 - 2c)`. Expectation and bound are closed forms."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from hf_mhe.energy.distances.spherical import SphericalDistance
from hf_mhe.energy.sphere import levenshtein
from hf_mhe.energy.sphere.log_gamma import log_gamma_bend, log_gamma_step


class Chord(SphericalDistance):
    """`rho = |u - v|`. For random directions `rho^2 = 4 B` with `B ~ Beta(a, a)`, `a = (d - 1) / 2`."""

    at_antipodes = 2.0
    slope_at_antipodes = 0.0

    def squared(self, cos: Tensor) -> Tensor:
        return 2 - 2 * cos

    def squared_from_chords(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor | float]:
        return near, 1.0

    def from_chords(self, near: Tensor, far: Tensor) -> Tensor:
        return near

    def of_angle(self, theta: np.ndarray) -> np.ndarray:
        return 2 * np.sin(theta / 2)

    def of_cosine(self, cos: np.ndarray) -> np.ndarray:
        return np.sqrt(2 - 2 * cos)

    def mean(self, d: int, s: float) -> float:
        from scipy.special import digamma

        if s > 0:
            return math.exp(_log_mean(d, s))
        a = (d - 1) / 2
        return -0.5 * (math.log(4.0) + float(digamma(a) - digamma(2 * a)))

    def std(self, d: int, s: float, *, mirrored: bool) -> float:
        # Mirrored: of F = f(c) + f(−c), 2 Var f + 2 Cov(f(c), f(−c)), from E (4B · 4(1−B))^(−s/2).
        from scipy.special import polygamma

        a, h = (d - 1) / 2, s / 2
        if s == 0:
            at_a, at_2a = float(polygamma(1, a)), float(polygamma(1, 2 * a))
            return math.sqrt(max(0.0, 0.5 * (at_a - 2 * at_2a) if mirrored else 0.25 * (at_a - at_2a)))
        bend_a, bend_2a = log_gamma_bend(a - h, h), log_gamma_bend(2 * a - h, h)
        log_moment = bend_a - bend_2a  # E f² / (E f)² = exp(log_moment); at an s of hundreds beyond any float
        if log_moment > 100.0:
            log_variance = log_moment
        else:
            variance = math.expm1(log_moment) + (math.expm1(-bend_2a) if mirrored else 0.0)
            if variance <= 0.0:
                return 0.0
            log_variance = math.log(variance)
        return math.exp(_log_mean(d, s) + 0.5 * (log_variance + (math.log(2.0) if mirrored else 0.0)))

    def lower_bound(self, n: int, d: int, s: float) -> float:
        return levenshtein.mean_over_points(n, d, s, self.of_cosine)

    def lower_bound_of_lines(self, n: int, d: int, s: float) -> float:
        return levenshtein.mean_over_lines(n, d, s, self.of_cosine)


def _log_mean(d: int, s: float) -> float:
    a = (d - 1) / 2
    return -s * math.log(2.0) + log_gamma_step(a, -s / 2) - log_gamma_step(2 * a, -s / 2)

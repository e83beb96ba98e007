"""Moments of a potential over the angle between two random directions, which has density ∝ sin^(d−2) θ on [0, π]."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hf_mhe.energy.sphere.log_gamma import log_gamma_step

# rho of one angle in (0, π], which is about slope_at_zero · θ near 0.
Rho = Callable[[float], float]


def mean(rho: Rho, slope_at_zero: float, d: int, s: float) -> float:
    """E f_s(rho(θ)) in dimension d >= 2, for s < d − 1."""
    if s > 0:
        return _exp(_log_mean(_per_slope(rho, slope_at_zero), d, s) - s * math.log(slope_at_zero))
    total, log_scale = _integral(d, 0.0, lambda theta: (0.0, -math.log(rho(theta))), math.pi)
    return total * math.exp(log_scale)


def std(rho: Rho, slope_at_zero: float, d: int, s: float, *, mirrored: bool) -> float:
    """The standard deviation of f_s(rho(θ)), or `mirrored` of f_s(rho(θ)) + f_s(rho(π − θ)), for 2 s < d − 1."""
    rho = _per_slope(rho, slope_at_zero)
    if s == 0:
        expected = (2 if mirrored else 1) * mean(rho, 1.0, d, 0.0)

        def squared(theta: float) -> tuple[float, float]:
            log_rho = math.log(rho(theta)) + (math.log(rho(math.pi - theta)) if mirrored else 0.0)
            return 0.0, (log_rho + expected) ** 2
    else:
        log_mean = _log_mean(rho, d, s) + (math.log(2.0) if mirrored else 0.0)

        def squared(theta: float) -> tuple[float, float]:
            # (F − mean)² over θ^(−2s). With F = mean · e^q + mirror image, the larger of F and mean is taken out, so
            # that neither end overflows.
            if theta == 0:
                return 0.0, 1.0
            exponent = -2 * s * _log_over_theta(rho, theta)
            q = -s * math.log(rho(theta)) - log_mean
            mirror = 0.0
            if mirrored:
                mirror = math.exp(min(-s * math.log(rho(math.pi - theta)) - log_mean - max(q, 0.0), 0.0))
            if q > 0:
                return exponent, (mirror - math.expm1(-q)) ** 2
            return exponent - 2 * q, (mirror + math.expm1(q)) ** 2

    # Mirrored, the integrand is even about π/2.
    total, log_scale = _integral(d, 2 * s, squared, math.pi / 2 if mirrored else math.pi)
    return math.sqrt((2 if mirrored else 1) * total) * _exp(0.5 * log_scale - s * math.log(slope_at_zero))


def _per_slope(rho: Rho, slope_at_zero: float) -> Rho:
    # A constant factor of rho is one of f_s, or a summand, and may be beyond any float: it is put back as a logarithm.
    return lambda theta: rho(theta) / slope_at_zero


def _log_mean(rho: Rho, d: int, s: float) -> float:
    total, log_scale = _integral(d, s, lambda theta: (-s * _log_over_theta(rho, theta), 1.0), math.pi)
    return math.log(total) + log_scale


def _log_over_theta(rho: Rho, theta: float) -> float:
    # log(rho(θ) / θ), which is 0 at 0.
    return math.log(rho(theta)) - math.log(theta) if theta > 0 else 0.0


def _exp(exponent: float) -> float:
    # A distance below 1 to a power of hundreds is no float.
    return math.exp(exponent) if exponent < 709.0 else math.inf


def _integral(d: int, power: float, tilt: Callable[[float], tuple[float, float]], upper: float) -> tuple[float, float]:
    """∫_0^upper θ^(−power) g(θ) sin^(d−2)(θ) dθ / ∫_0^π sin^(d−2), for power < d − 1, as (x, L) with value x exp(L).

    g = factor · exp(exponent), where `tilt(θ)` is (exponent, factor), at 0 too if power > 0. For large d the integrand
    is one or two narrow peaks, so [0, upper] is split at multiples of their widths; the piece that starts at 0 carries
    θ^(d−2−power), which quad integrates exactly as a weight, so that a `power` just below d − 1 is as accurate as any
    other.
    """
    from scipy.integrate import quad

    m = d - 2
    log_norm = 0.5 * math.log(math.pi) - log_gamma_step((d - 1) / 2, 0.5)

    def log_sine(theta: float) -> float:
        c = math.cos(theta)  # near π/2, log1p(−c²) keeps the digits that log(sin θ) loses, d − 2 times over
        return 0.5 * math.log1p(-c * c) if c * c < 0.5 else math.log(math.sin(theta))

    centre, width = _peak(m, power)
    height = m * log_sine(centre) - power * math.log(centre) if centre > 0 else 0.0

    def whole(theta: float) -> float:
        exponent, factor = tilt(theta)
        return factor * math.exp(m * log_sine(theta) - power * math.log(theta) + exponent - height)

    def without_power(theta: float) -> float:
        exponent, factor = tilt(theta)
        sinc = math.log(math.sin(theta) / theta) if theta > 0 else 0.0
        return factor * math.exp(m * sinc + exponent - height)

    ends = {0.0, upper}
    for middle, unit in ((centre, width), (math.pi / 2, 1 / math.sqrt(m) if m else math.inf)):
        for k in (0, 1, 2, 3, 4, 6, 8, 12, 20, 40):
            ends.update(t for t in (middle - k * unit, middle + k * unit) if 0.02 * unit < t < upper)
    options: dict[str, Any] = {"epsabs": 0.0, "epsrel": 1e-12, "limit": 200, "full_output": 1}
    total = 0.0
    for low, high in pairwise(sorted(ends)):
        if low == 0.0 and power > 0.0 and m - power < 2.0:
            total += quad(without_power, low, high, weight="alg", wvar=(m - power, 0.0), **options)[0]
        else:
            total += quad(whole, low, high, **options)[0]
    return total, height - log_norm


def _peak(m: int, power: float) -> tuple[float, float]:
    # Where m log sin θ − power log θ is largest: θ cot θ = power / m, a decreasing function of θ on (0, π).
    if m == 0:
        return 0.0, math.inf
    if power >= m:
        return 0.0, math.sqrt(3.0 / m)  # (sin θ/θ)^m ≈ exp(−m θ²/6)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        mid = 0.5 * (low + high)
        low, high = (mid, high) if mid / math.tan(mid) > power / m else (low, mid)
    centre = 0.5 * (low + high)
    curvature = m / math.sin(centre) ** 2 - power / centre**2
    return centre, min(1.0 / math.sqrt(curvature), math.sqrt(3.0 / m) if power > 0.9 * m else math.inf)

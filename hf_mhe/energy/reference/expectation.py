"""What independent uniform directions would cost: the mean and the spread of their hyperspherical energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

from hf_mhe.checks import check_integer
from hf_mhe.energy.potential import Distance, Potential, Space

# Note [log-gamma differences]
# The closed forms are ratios of gamma functions. At d = 1e6 each log-gamma is about 1e7, so subtracting two of them
# leaves 1e-9 of relative error, and the variance, a second difference a million times smaller than its terms, would
# be noise. So the differences themselves are computed: the recurrence Γ(z + 1) = z Γ(z) lifts the arguments to
# _STIRLING or more, term by term through log1p, and there Stirling's series is differenced symbolically.
_STIRLING = 20.0


# The first coefficient left out, 1/156, changes nothing in the last digit for z >= 20.
_STIRLING_SERIES = ((1, 1 / 12), (3, -1 / 360), (5, 1 / 1260), (7, -1 / 1680), (9, 1 / 1188), (11, -691 / 360360))


def _log_of_sum(z: float, x: float) -> float:
    # log((z + x) / z), where x may be close to −z: z + x is exact there, 1 + x/z is not.
    return math.log1p(x / z) if x > -0.5 * z else math.log((z + x) / z)


def _log_gamma_step(z: float, x: float) -> float:
    """ln Γ(z + x) − ln Γ(z), for z > 0 and z + x > 0 (Note [log-gamma differences])."""
    lifted = max(0, math.ceil(_STIRLING - min(z, z + x)))
    below = math.fsum(_log_of_sum(z + k, x) for k in range(lifted))
    z += lifted
    step = _log_of_sum(z, x)
    tail = math.fsum(c * z**-p * math.expm1(-p * step) for p, c in _STIRLING_SERIES)
    return x * math.log(z) + (z + x - 0.5) * step - x + tail - below


def _log_gamma_bend(z: float, h: float) -> float:
    """ln Γ(z + h) − 2 ln Γ(z) + ln Γ(z − h), for z > h >= 0 (Note [log-gamma differences])."""
    lifted = max(0, math.ceil(_STIRLING - (z - h)))
    below = math.fsum(_log_of_sum(z + k, h) + _log_of_sum(z + k, -h) for k in range(lifted) if h > 0.5 * (z + k))
    below += math.fsum(math.log1p(-((h / (z + k)) ** 2)) for k in range(lifted) if h <= 0.5 * (z + k))
    z += lifted
    y = h / z
    up, down = _log_of_sum(z, h), _log_of_sum(z, -h)
    tail = math.fsum(c * z**-p * (math.expm1(-p * up) + math.expm1(-p * down)) for p, c in _STIRLING_SERIES)
    return (z - 0.5) * math.log1p(-y * y) + 2 * h * math.atanh(y) + tail - below


def check_shape(n: int, d: int) -> tuple[int, int]:
    """The number of neurons `n` and their dimension `d` as ints; raises MHEError unless n >= 2 and d >= 1."""
    return check_integer("n", n, at_least=2), check_integer("d", d, at_least=1)


# --- euclidean: ρ² = 4 B with B ~ Beta(a, a), a = (d − 1)/2 -------------------------------------------------------


def _euclidean_log_mean(d: int, s: float) -> float:
    a = (d - 1) / 2
    return -s * math.log(2.0) + _log_gamma_step(a, -s / 2) - _log_gamma_step(2 * a, -s / 2)


def _euclidean_mean(d: int, s: float) -> float:
    from scipy.special import digamma

    if s > 0:
        return math.exp(_euclidean_log_mean(d, s))
    a = (d - 1) / 2
    return -0.5 * (math.log(4.0) + float(digamma(a) - digamma(2 * a)))


def _euclidean_std(d: int, s: float, *, mirrored: bool) -> float:
    # Mirrored: of F = f(c) + f(−c), 2 Var f + 2 Cov(f(c), f(−c)), from E (4B · 4(1−B))^(−s/2).
    from scipy.special import polygamma

    a, h = (d - 1) / 2, s / 2
    if s == 0:
        at_a, at_2a = float(polygamma(1, a)), float(polygamma(1, 2 * a))
        return math.sqrt(max(0.0, 0.5 * (at_a - 2 * at_2a) if mirrored else 0.25 * (at_a - at_2a)))
    bend_a, bend_2a = _log_gamma_bend(a - h, h), _log_gamma_bend(2 * a - h, h)
    log_moment = bend_a - bend_2a  # E f² / (E f)² = exp(log_moment); at an s of hundreds beyond any float
    if log_moment > 100.0:
        log_variance = log_moment
    else:
        variance = math.expm1(log_moment) + (math.expm1(-bend_2a) if mirrored else 0.0)
        if variance <= 0.0:
            return 0.0
        log_variance = math.log(variance)
    return math.exp(_euclidean_log_mean(d, s) + 0.5 * (log_variance + (math.log(2.0) if mirrored else 0.0)))


# --- angular: θ has density ∝ sin^(d−2) θ on [0, π] ---------------------------------------------------------------


def _angular_integral(
    d: int, power: float, tilt: Callable[[float], tuple[float, float]], upper: float
) -> tuple[float, float]:
    """∫_0^upper θ^(−power) g(θ) sin^(d−2)(θ) dθ / ∫_0^π sin^(d−2), for power < d − 1, as (x, L) with value x exp(L).

    g = factor · exp(exponent), where `tilt(θ)` is (exponent, factor). For large d the integrand is one or two narrow
    peaks, so [0, upper] is cut at multiples of their widths; the piece that starts at 0 carries θ^(d−2−power), which
    quad integrates exactly as a weight, so that a `power` just below d − 1 is as accurate as any other.
    """
    from scipy.integrate import quad

    m = d - 2
    log_norm = 0.5 * math.log(math.pi) - _log_gamma_step((d - 1) / 2, 0.5)

    def log_sine(theta: float) -> float:
        c = math.cos(theta)  # near π/2, log1p(−c²) keeps the digits that log(sin θ) loses, d − 2 times over
        return 0.5 * math.log1p(-c * c) if c * c < 0.5 else math.log(math.sin(theta))

    centre, width = _peak(m, power)
    height = m * log_sine(centre) - power * math.log(centre) if centre > 0 else 0.0

    def whole(theta: float) -> float:
        exponent, factor = tilt(theta)
        return factor * math.exp(m * log_sine(theta) - power * math.log(theta) + exponent - height)

    def without_power(theta: float) -> float:
        exponent, factor = tilt(theta) if theta > 0 else (0.0, 1.0)
        sinc = math.log(math.sin(theta) / theta) if theta > 0 else 0.0
        return factor * math.exp(m * sinc + exponent - height)

    cuts = {0.0, upper}
    for middle, unit in ((centre, width), (math.pi / 2, 1 / math.sqrt(m) if m else math.inf)):
        for k in (0, 1, 2, 3, 4, 6, 8, 12, 20, 40):
            cuts.update(t for t in (middle - k * unit, middle + k * unit) if 0.02 * unit < t < upper)
    options: dict[str, Any] = {"epsabs": 0.0, "epsrel": 1e-12, "limit": 200, "full_output": 1}
    total = 0.0
    for low, high in pairwise(sorted(cuts)):
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


def _angular_log_mean(d: int, s: float) -> float:
    if d == 2:  # θ is uniform on [0, π]
        return -s * math.log(math.pi) - math.log1p(-s)
    total, log_scale = _angular_integral(d, s, lambda theta: (0.0, 1.0), math.pi)
    return math.log(total) + log_scale


def _angular_mean(d: int, s: float) -> float:
    if s > 0:
        return math.exp(_angular_log_mean(d, s))
    if d == 2:
        return 1.0 - math.log(math.pi)
    total, log_scale = _angular_integral(d, 0.0, lambda theta: (0.0, -math.log(theta)), math.pi)
    return total * math.exp(log_scale)


def _angular_std(d: int, s: float, *, mirrored: bool) -> float:
    if s == 0 and d == 2:  # −log(θ/π) is exponential with mean 1, and E log U log(1 − U) = 2 − π²/6
        return math.sqrt(4.0 - math.pi**2 / 3) if mirrored else 1.0
    if s == 0:
        mean = (2 if mirrored else 1) * _angular_mean(d, 0.0)

        def squared(theta: float) -> tuple[float, float]:
            return 0.0, (math.log(theta) + (math.log(math.pi - theta) if mirrored else 0.0) + mean) ** 2
    else:
        log_mean = _angular_log_mean(d, s) + (math.log(2.0) if mirrored else 0.0)

        def squared(theta: float) -> tuple[float, float]:
            # (F − mean)² over θ^(−2s). With F = mean · e^q + mirror image, the larger of F and mean is taken out, so
            # that neither end overflows.
            q = -s * math.log(theta) - log_mean
            mirror = math.exp(min(-s * math.log(math.pi - theta) - log_mean - max(q, 0.0), 0.0)) if mirrored else 0.0
            if q > 0:
                return 0.0, (mirror - math.expm1(-q)) ** 2
            return -2 * q, (mirror + math.expm1(q)) ** 2

    # Mirrored, the integrand is even about π/2.
    total, log_scale = _angular_integral(d, 2 * s, squared, math.pi / 2 if mirrored else math.pi)
    return math.sqrt((2 if mirrored else 1) * total) * math.exp(0.5 * log_scale)


# --- the public numbers -------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _pair_mean(d: int, s: float, distance: str) -> float:
    if d == 1 or s >= d - 1:
        return math.inf
    return _euclidean_mean(d, s) if distance == "euclidean" else _angular_mean(d, s)


@lru_cache(maxsize=4096)
def _pair_std(d: int, s: float, distance: str, mirrored: bool) -> float:
    if d == 1 or 2 * s >= d - 1:
        return math.inf
    std = _euclidean_std if distance == "euclidean" else _angular_std
    return std(d, s, mirrored=mirrored)


def expected_energy(
    n: int, d: int, s: float = 2.0, *, distance: Distance = "euclidean", space: Space = "full"
) -> float:
    """Mean over independent uniform directions of the mean hyperspherical energy of `n` neurons in dimension `d`.

    Euclidean in closed form: ρ² = 4B with B ~ Beta(a, a), a = (d−1)/2, so that E f is
    2^(−s) Γ(a − s/2) Γ(2a) / (Γ(a) Γ(2a − s/2)), or −(log 4 + ψ(a) − ψ(2a))/2 for s = 0. Angular by quadrature against
    the density ∝ (1 − c²)^((d−3)/2) of the cosine. Relative error below 1e-9 for d up to 1e6. In half space
    E f(c) = E f(−c), and the n pairs of a neuron with its own mirror image add a constant:
    (4n(n−1) E f + 2n f(−1)) / (2n(2n−1)).

    Returns `inf` where the expectation diverges: s >= d − 1, and any s for d = 1, where two directions coincide with
    probability one half.

    Raises:
        MHEError: n below 2, d below 1, either not an integer, or an option that `Potential` does not take.
    """
    n, d = check_shape(n, d)
    potential = Potential(s=s, distance=distance, space=space)
    mean = _pair_mean(d, float(potential.s), potential.distance)
    if potential.space == "full":
        return mean
    return (2 * (n - 1) * mean + potential.mirror_energy()) / (2 * n - 1)


def expected_energy_std(
    n: int, d: int, s: float = 2.0, *, distance: Distance = "euclidean", space: Space = "full"
) -> float:
    """Standard deviation, over independent uniform directions, of the mean hyperspherical energy of `n` neurons.

    Exact, not an approximation for large n: the cosines c_ij and c_ik of independent uniform directions are
    independent, because given neuron i the distribution of each does not depend on where i points. So all pair
    energies are uncorrelated and their variances add: Var f / (n(n−1)/2) in full space; in half space
    16 · n(n−1)/2 · Var(f(c) + f(−c)) / (2n (2n−1))².

    Returns `inf` where E f² diverges: 2 s >= d − 1, and any s for d = 1.

    Raises:
        MHEError: n below 2, d below 1, either not an integer, or an option that `Potential` does not take.
    """
    n, d = check_shape(n, d)
    potential = Potential(s=s, distance=distance, space=space)
    mirrored = potential.space == "half"
    deviation = _pair_std(d, float(potential.s), potential.distance, mirrored)
    pairs = n * (n - 1) / 2
    if mirrored:
        return deviation * 4 * math.sqrt(pairs) / (2 * n * (2 * n - 1))
    return deviation / math.sqrt(pairs)

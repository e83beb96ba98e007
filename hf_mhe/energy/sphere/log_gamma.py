"""Differences of the log-gamma function that keep their digits where its values are large."""

from __future__ import annotations

import math

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


def log_gamma_step(z: float, x: float) -> float:
    """ln Γ(z + x) − ln Γ(z), for z > 0 and z + x > 0 (Note [log-gamma differences])."""
    lifted = max(0, math.ceil(_STIRLING - min(z, z + x)))
    below = math.fsum(_log_of_sum(z + k, x) for k in range(lifted))
    z += lifted
    step = _log_of_sum(z, x)
    tail = math.fsum(c * z**-p * math.expm1(-p * step) for p, c in _STIRLING_SERIES)
    return x * math.log(z) + (z + x - 0.5) * step - x + tail - below


def log_gamma_bend(z: float, h: float) -> float:
    """ln Γ(z + h) − 2 ln Γ(z) + ln Γ(z − h), for z > h >= 0 (Note [log-gamma differences])."""
    lifted = max(0, math.ceil(_STIRLING - (z - h)))
    below = math.fsum(_log_of_sum(z + k, h) + _log_of_sum(z + k, -h) for k in range(lifted) if h > 0.5 * (z + k))
    below += math.fsum(math.log1p(-((h / (z + k)) ** 2)) for k in range(lifted) if h <= 0.5 * (z + k))
    z += lifted
    y = h / z
    up, down = _log_of_sum(z, h), _log_of_sum(z, -h)
    tail = math.fsum(c * z**-p * (math.expm1(-p * up) + math.expm1(-p * down)) for p, c in _STIRLING_SERIES)
    return (z - 0.5) * math.log1p(-y * y) + 2 * h * math.atanh(y) + tail - below

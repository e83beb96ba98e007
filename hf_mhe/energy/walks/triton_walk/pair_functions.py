"""Potentials and their slopes on a tile of cosines, in the operations that Triton has everywhere."""

# A kernel's arguments are pointers and tiles, which Python has no types for; Triton ships none.
# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

# Which form of the Riesz kernel a tile is compiled for: the exponent itself, or any other real number.
ANY_EXPONENT = tl.constexpr(3)
# Which distance: as `launch.DISTANCES` numbers them.
EUCLIDEAN = tl.constexpr(0)
ANGULAR = tl.constexpr(1)
PI = tl.constexpr(3.141592653589793)


# Note [Arccosine]
# Triton has no arccosine that the interpreter runs too: libdevice's is a call into NVIDIA's library. With asin(r) =
# r + r^3 P(r^2) on [0, 1/2] (the polynomial of Cephes' asinf, Moshier 1989, relative error below 3e-7),
# acos(a) = pi/2 - asin(a) up to 1/2 and, beyond, 2 asin(sqrt((1 - a) / 2)), which keeps the relative accuracy where
# the angle is small and its reciprocal large. One square root and five multiply-adds.
@triton.jit
def arccos_of_magnitude(a):
    """`arccos(a)` for `0 <= a <= 1`, float32."""
    steep = a > 0.5
    square = tl.where(steep, 0.5 - 0.5 * a, a * a)
    root = tl.where(steep, tl.sqrt(square), a)
    poly = 4.2163199048e-2 * square + 2.4181311049e-2
    poly = poly * square + 4.5470025998e-2
    poly = poly * square + 7.4953002686e-2
    poly = poly * square + 1.6666752422e-1
    arcsin = root + root * square * poly
    return tl.where(steep, 2 * arcsin, 0.5 * PI - arcsin)


@triton.jit
def riesz(square, inner, s, S: tl.constexpr):
    """`f_s` and its slope from the squared distance and `inner = -d(square)/dc / 2`."""
    if S == 0:
        value = -0.5 * tl.log(square)
        slope = inner / square
    elif S == 1:
        value = 1 / tl.sqrt(square)
        slope = inner * value / square
    elif S == 2:
        value = 1 / square
        slope = 2 * inner * value * value
    else:
        value = tl.exp2(-0.5 * s * tl.log2(square))
        slope = s * inner * value / square
    return value, slope


# With a = 2 + eps^2, x = a - 2c and y = a + 2c: x + y = 2a and xy = a^2 - 4c^2. Written on the product, the slope
# keeps its digits near c = 0, where a difference of the two sides would lose them, and where most pairs are.
@triton.jit
def euclidean_half(c, softening_squared, S: tl.constexpr):
    """Both sides of the euclidean kernel at once, for s = 0, 1, 2."""
    a = 2.0 + softening_squared
    inverse = 1 / ((a - 2 * c) * (a + 2 * c))
    if S == 2:  # F = 2a / (xy) ; F' = 16 a c / (xy)^2
        value = 2 * a * inverse
        slope = 8 * c * value * inverse
    elif S == 1:  # p = x^(-1/2), m = y^(-1/2): F' = p^3 - m^3 = (p - m)(p^2 + pm + m^2), p - m = 4c / (xy (p + m))
        p = 1 / tl.sqrt(a - 2 * c)
        m = 1 / tl.sqrt(a + 2 * c)
        value = p + m
        slope = 4 * c * inverse / value * (value * value - p * m)
    else:  # F = -log(xy) / 2 ; F' = 4c / (xy)
        value = 0.5 * tl.log(inverse)
        slope = 4 * c * inverse
    return value, slope


@triton.jit
def pair_function(c, s, softening_squared, S: tl.constexpr, DISTANCE: tl.constexpr, HALF: tl.constexpr):
    """`(F(c), dF/dc)` for float32 cosines inside (-1, 1)."""
    if DISTANCE != ANGULAR:
        tl.static_assert(DISTANCE == EUCLIDEAN, "a distance without a pair function")
    if DISTANCE == ANGULAR:
        magnitude = tl.abs(c)
        sharp = arccos_of_magnitude(magnitude)
        cosecant = 1 / tl.sqrt((1 - magnitude) * (1 + magnitude))
        near = tl.where(c < 0, PI - sharp, sharp)
        value, slope = riesz(near * near + softening_squared, near * cosecant, s, S)
        if HALF:
            far = tl.where(c < 0, sharp, PI - sharp)
            mirrored_value, mirrored_slope = riesz(far * far + softening_squared, far * cosecant, s, S)
            value = value + mirrored_value
            slope = slope - mirrored_slope
    elif HALF:
        if S == ANY_EXPONENT:
            value, slope = riesz(2 - 2 * c + softening_squared, 1.0, s, S)
            mirrored_value, mirrored_slope = riesz(2 + 2 * c + softening_squared, 1.0, s, S)
            value = value + mirrored_value
            slope = slope - mirrored_slope
        else:
            value, slope = euclidean_half(c, softening_squared, S)
    else:
        value, slope = riesz(2 - 2 * c + softening_squared, 1.0, s, S)
    return value, slope

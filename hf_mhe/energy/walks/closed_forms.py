"""In-place evaluation of a potential and its slope on a block of cosines, in as few passes as we know how."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.workspace import scratch


class Block(NamedTuple):
    """`F(c) = value_factor * value` and `dF/dc = slope_factor * slope`, elementwise on one block.

    The slope lies in the block that was handed over as `spare`, or with `slope_in_cos` in that of the cosines; the
    value in the other one, or in memory that lasts until the next block; or both are one tensor. With `squared` the
    slope lacks a factor, the square of the value (all of it, where both are one tensor), which `total` gives it. With
    `log_of`, a power of two, `F(c) = value_factor * log(log_of * value)`. The factors stay apart because multiplying
    a block by a constant is one more pass over it.
    """

    value: Tensor
    value_factor: float
    slope: Tensor | None
    slope_factor: float
    slope_in_cos: bool = False
    squared: bool = False
    log_of: float | None = None

    @property
    def nothing(self) -> float:
        """What adds nothing where it stands in the value."""
        return 0.0 if self.log_of is None else 1 / self.log_of

    def take_out_(self, places: Callable[[Tensor, float], object]) -> None:
        """Have `places` set some places of value and slope to what adds nothing."""
        places(self.value, self.nothing)
        if self.slope is not None and self.slope is not self.value:
            places(self.slope, 0.0)

    def total(self) -> float:
        """The sum of `F` over the block, asked once; from then on the slope is ready."""
        total = self.total_of(self.value)
        self._complete()
        return total

    def total_of(self, value: Tensor) -> float:
        """The sum of `F` over a part of the value, asked before `total`."""
        if self.log_of is None:
            return self.value_factor * float(value.sum())
        small = value.numel() < _MULTIPLY_ABOVE
        logs = value.log().sum() if small else _sums_of_logs(value.view(1, -1))
        return self.value_factor * (float(logs) + value.numel() * math.log(self.log_of))

    def totals(self) -> list[float]:
        """The same for each matrix of a block `(B, n, m)`."""
        flat = self.value.flatten(1)
        totals: list[float] = (flat.sum(1) if self.log_of is None else _sums_of_logs(flat)).tolist()
        constant = 0.0 if self.log_of is None else flat.shape[1] * math.log(self.log_of)
        self._complete()
        return [self.value_factor * (total + constant) for total in totals]

    def _complete(self) -> None:
        if self.squared and self.slope is not None:
            square = self.value.square_()
            if self.slope is not square:
                self.slope.mul_(square)


# Note [Passes]
# A block of cosines fits the cache, and the matrix products around it cost O(d) operations an element, so what this
# file can waste is passes. Each form below is written on the fewest: constants are carried as factors, `c - a/2` (one
# pass) stands for `a - 2c` (two), and a sum of mirrored terms is rewritten on their product wherever that is one
# function call in place of two. With a = 2 + eps^2, x = a - 2c and y = a + 2c one has x + y = 2a and xy = a^2 - 4c^2.
# Rejected: torch.compile for the block, which fuses the passes but needs a C++ compiler on the user's machine.
#
# A logarithm takes as long as eight passes. The sum of sixteen of them is the logarithm of a product: one pass, and a
# sixteenth of the logarithms. What is multiplied lies between 1e-2 (5e-7 in float64: nearer pairs are taken out) and
# 10, so that no product of sixteen leaves the range of its dtype. Rejected: thirty-two, whose products could vanish.
_MULTIPLIED = 16
_MULTIPLY_ABOVE = 1 << 13  # elements; below, the calls cost more than the logarithms
_WIDEST_MULTIPLIED = 2.0  # softening; what is multiplied grows with it


def _sums_of_logs(values: Tensor) -> Tensor:
    """`sum_j log(values[b, j])`, `(B, m)` to `(B,)`."""
    count, m = values.shape
    products = m // _MULTIPLIED
    grouped = values[:, : products * _MULTIPLIED].view(count, _MULTIPLIED, products)
    product = scratch("products", count * products, values.dtype, values.device).view(count, products)
    torch.prod(grouped, dim=1, out=product)
    total = product.log_().sum(1)
    rest = values[:, products * _MULTIPLIED :]
    return total if not rest.numel() else total.add_(rest.log().sum(1))


def fill_diagonal_(blocks: Tensor, value: float = 0.0) -> None:
    """Set the diagonal of a square, or of each of a batch of them."""
    blocks.diagonal(dim1=-2, dim2=-1).fill_(value)


def evaluate_(potential: Potential, cos: Tensor, spare: Tensor | None) -> Block:
    """Turn a block of cosines into values of `F` and, where `spare` is given, of `dF/dc`; close pairs are taken out.

    Args:
        potential: the pair function.
        cos: any shape, float32 or float64, contiguous; overwritten.
        spare: same shape and dtype, overwritten; None where no slope is wanted.
    """
    return _form(potential, cos.dtype)(potential, cos, spare)


def _form(potential: Potential, dtype: torch.dtype) -> Form:
    if potential.closest and dtype == torch.float64:
        return _any
    if potential.s in (1, 2) or (potential.s == 0 and potential.softening <= _WIDEST_MULTIPLIED):
        forms = _SOFTENED_FORMS if potential.softening else _EXACT_FORMS
        return forms.get((potential.distance, potential.space), _any)
    return _any


def is_of_angles(potential: Potential, dtype: torch.dtype) -> bool:
    """Whether the values of a potential come from the angles, so that several potentials can share them."""
    return _form(potential, dtype) in (_angular_full, _angular_half)


def values_of_angles_(potential: Potential, angle: Tensor) -> Block:
    """`evaluate_` without slopes, from a block of angles `arccos c`, which is overwritten."""
    if potential.space == "half":
        return _of_arcsine(potential, angle.sub_(math.pi / 2))  # of either sign
    return _of_angle(potential, angle)


def _scalar(value: float, like: Tensor) -> Tensor:
    # A CPU scalar of no dimensions takes part in an elementwise operation on any device, as a constant.
    return torch.scalar_tensor(value, dtype=like.dtype, device="cpu")


def _third(cos: Tensor) -> Tensor:
    # Memory for a block beside the cosines' and the spare one: fresh memory would double the time of its pass.
    return scratch("third block", cos.numel(), cos.dtype, cos.device).view(cos.shape)


def _euclidean_full(potential: Potential, cos: Tensor, spare: Tensor | None) -> Block:
    half = 1 + 0.5 * potential.softening**2
    if potential.s == 2:  # u = 1 / (c - a/2) = -2 / x ; F = -u/2 ; F' = u^2 / 2
        cos.sub_(half).reciprocal_()
        return Block(cos, -0.5, None if spare is None else cos, 0.5, slope_in_cos=True, squared=True)
    torch.sub(_scalar(half, cos), cos, out=cos)  # x / 2
    if potential.s == 1:  # r = sqrt(2 / x) ; F = r / sqrt 2 ; F' = r^3 / (2 sqrt 2)
        cos.rsqrt_()
        slope = None if spare is None else torch.pow(cos, 3, out=spare)  # a kernel of its own, one pass
        return Block(cos, math.sqrt(0.5), slope, math.sqrt(0.125))
    slope = None if spare is None else torch.reciprocal(cos, out=spare)
    return Block(cos, -0.5, slope, 0.5, log_of=2.0)


def _euclidean_half(potential: Potential, cos: Tensor, spare: Tensor | None) -> Block:
    half = 1 + 0.5 * potential.softening**2
    if potential.s == 1:
        return _euclidean_half_s1(half, cos, spare)
    if potential.s == 2:  # u = 1 / (c^2 - a^2/4) = -4 / (xy) ; F = 2a/(xy) = -a u / 2 ; F' = 16 a c/(xy)^2 = a c u^2
        product = torch.addcmul(_scalar(-half * half, cos), cos, cos, out=cos if spare is None else spare)
        product.reciprocal_()
        return Block(product, -half, None if spare is None else cos, 2 * half, slope_in_cos=True, squared=True)
    product = _minus_square(half * half, cos, cos if spare is None else spare)  # xy / 4
    slope = None if spare is None else cos.div_(product)  # F' = 4c / (xy)
    return Block(product, -0.5, slope, 1.0, slope_in_cos=True, log_of=4.0)


def _euclidean_half_s1(half: float, cos: Tensor, spare: Tensor | None) -> Block:
    # p = sqrt(2/x), m = sqrt(2/y), v = p + m: F = v / sqrt 2 ; F' = (p^3 - m^3)/(2 sqrt 2) and
    # p^3 - m^3 = (p - m)(v^2 - pm), with p - m = v - 2m.
    plus = torch.sub(_scalar(half, cos), cos, out=_third(cos) if spare is None else spare).rsqrt_()
    minus = cos.add_(half).rsqrt_()
    if spare is None:
        return Block(minus.add_(plus), math.sqrt(0.5), None, 1.0)
    value = torch.add(plus, minus, out=_third(cos))
    plus.mul_(minus).addcmul_(value, value, value=-1)
    slope = torch.sub(value, minus, alpha=2, out=minus).mul_(plus)
    return Block(value, math.sqrt(0.5), slope, -math.sqrt(0.125), slope_in_cos=True)


def _angular_full(potential: Potential, cos: Tensor, spare: Tensor | None) -> Block:
    slope = None if spare is None else _cosecant(cos, spare)
    return _of_angle(potential, cos.arccos_(), slope)


def _of_angle(potential: Potential, angle: Tensor, slope: Tensor | None = None) -> Block:
    if potential.s == 0:  # F = -log t ; F' = 1 / (t sin t)
        if slope is not None:
            slope.div_(angle)
        return Block(angle, -1.0, slope, 1.0, log_of=1.0)
    if potential.s == 1:  # F = 1/t ; F' = 1 / (t^2 sin t)
        inverse = angle.reciprocal_()
        if slope is not None:
            slope.mul_(inverse).mul_(inverse)
        return Block(inverse, 1.0, slope, 1.0)
    if slope is not None:  # F = 1/t^2 ; F' = 2 / (t^3 sin t)
        slope.div_(angle)
    inverse = angle.pow_(-2)  # a kernel of its own, one pass
    if slope is not None:
        slope.mul_(inverse)
    return Block(inverse, 1.0, slope, 2.0)


def _angular_half(potential: Potential, cos: Tensor, spare: Tensor | None) -> Block:
    # w = t (pi - t), z = pi/2 - t = arcsin c, hence w = pi^2/4 - z^2:
    # s=0: F = -log w ; F' = 2z / (w sin t).  s=1: F = pi / w ; F' = 2 pi z / (w^2 sin t).
    # s=2: F = (pi^2 - 2w) / w^2 ; F' = 4 z (pi^2 - w) / (w^3 sin t).
    slope = None if spare is None else _cosecant(cos, spare)
    return _of_arcsine(potential, cos.arcsin_(), slope)


def _of_arcsine(potential: Potential, arcsin: Tensor, slope: Tensor | None = None) -> Block:
    product = _minus_square(math.pi**2 / 4, arcsin, arcsin if slope is None else _third(arcsin))
    if slope is not None:
        slope.mul_(arcsin)
    if potential.s == 0:
        if slope is not None:
            slope.div_(product)
        return Block(product, -1.0, slope, 2.0, log_of=1.0)
    inverse = product.reciprocal_()
    if potential.s == 1:
        if slope is not None:
            slope.mul_(inverse).mul_(inverse)
        return Block(inverse, math.pi, slope, 2 * math.pi)
    # With u = 1/w: F = -2 (u - pi^2/2 u^2), and (pi^2 - w) / w^3 = -u (u - pi^2 u^2).
    if slope is not None:
        slope.mul_(inverse).mul_(torch.addcmul(inverse, inverse, inverse, value=-(math.pi**2), out=arcsin))
    value = inverse.addcmul_(inverse, inverse, value=-(math.pi**2) / 2)
    return Block(value, -2.0, slope, -4.0)


def _cosecant(cos: Tensor, out: Tensor) -> Tensor:
    return _minus_square(1.0, cos, out).rsqrt_()


def _minus_square(constant: float, values: Tensor, out: Tensor) -> Tensor:
    return torch.addcmul(_scalar(constant, values), values, values, value=-1, out=out)


def _any(potential: Potential, cos: Tensor, spare: Tensor | None) -> Block:
    # Any s, every distance without a form of its own, and tangents. The definition on chords, which costs temporaries
    # of the block's size and nothing more.
    value, slope = potential.from_chords(2 - 2 * cos, 2 + 2 * cos)
    return Block(value, 1.0, None if spare is None else spare.copy_(slope), 1.0)


# For s = 0, 1, 2, by distance and space; a distance that is not here is evaluated from its definition.
Form = Callable[[Potential, Tensor, Tensor | None], Block]
_SOFTENED_FORMS: dict[tuple[str, str], Form] = {
    ("euclidean", "full"): _euclidean_full,
    ("euclidean", "half"): _euclidean_half,
}
_EXACT_FORMS: dict[tuple[str, str], Form] = {
    **_SOFTENED_FORMS,
    ("angular", "full"): _angular_full,
    ("angular", "half"): _angular_half,
}

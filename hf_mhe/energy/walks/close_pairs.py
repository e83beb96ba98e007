"""The few pairs that nearly coincide, recomputed one by one in float64 from the rows as they came."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.walks.copies import SAME_BELOW, push_copies_apart_
from hf_mhe.energy.walks.panels import PanelBatch

# Note [Cancellation]
# A cosine out of a matrix product carries an error of a few units in its last place, so `2 - 2c` is noise once two
# neurons are close: of float32 nothing is left at a distance of 1e-3. The difference of the two rows has no such loss.
# So pairs beyond a limit are taken out of the block and computed from `|u_i - u_j|^2` in float64, which costs O(d) a
# pair. Rejected: a clamp, which makes the energy of such pairs a constant and their gradient zero, exactly where the
# regularizer is needed; float64 for the whole walk, at twice the time.
#
# The limit: with an error of 2e-7 in c, a pair at `2 - 2c = 0.02` (an angle of 8 degrees) is off by 2e-5,
# and its share in a sum over more than a hundred neurons is below 1e-6 of it. In float64 the same reasoning gives
# 1e-6.
_SQUARED_CHORD_LIMIT = {torch.float32: 2e-2, torch.float64: 1e-6}

# One recomputed pair moves 2 d numbers where the matrix product spends d multiplications that come from the cache:
# about sixty times the price of its float64 twin.
_SHARE_THAT_IS_TOO_MANY = 1 / 64
_ELEMENTS_AT_A_TIME = 1 << 21  # of one temporary in sum_close_pairs: 16 MiB

# Squared chord of two float64 unit rows that differ by rounding alone.
_SAME = 1e-30

# Note [Coincident rows]
# One row may be a multiple of another, rounded to the dtype that both are stored in: at most half a unit in the last
# place of each element, a chord of 2^-24 in float32. The analysis counts such pairs apart, because a single one would
# outweigh the rest of its layer (`rho^-2` is 3e14). The same bound holds for bfloat16 and float16, though their
# rounding is coarser: a checkpoint must not change its report by being cast to float32. Rejected: equality of rows,
# which a factor of 3 defeats.
_COINCIDENT = {torch.float64: _SAME}
_COINCIDENT_OTHERWISE = (1.01 * 2.0**-24) ** 2


def coincident_below(dtype: torch.dtype) -> float:
    """The squared chord at which rows stored in this dtype cannot be distinguished."""
    return _COINCIDENT.get(dtype, _COINCIDENT_OTHERWISE)


def _bound(dtype: torch.dtype, potential: Potential) -> float:
    """The cosine from which on a pair is close, in products of this dtype.

    Where the potential has a tangent the closed forms end: that of float32 blocks is left to the few pairs it is of,
    and `evaluate_` knows it in float64.
    """
    limit = _SQUARED_CHORD_LIMIT[dtype]
    return 1 - 0.5 * (limit if dtype == torch.float64 else max(limit, potential.closest**2))


def extremes(cos: Tensor, *, two_sided: bool) -> tuple[float, float]:
    """The smallest, if `two_sided`, and the largest cosine of a block; two passes, which are faster than aminmax."""
    return float(cos.amin()) if two_sided else 0.0, float(cos.amax())


def has_close_pairs(cos: Tensor, potential: Potential, known: tuple[float, float] | None = None) -> bool:
    """Whether a block has pairs that are too close for its dtype, or too nearly opposite if the potential cares.

    `known` are the block's extremes, where they are.
    """
    known = extremes(cos, two_sided=potential.two_sided) if known is None else known
    return _beyond(known if potential.two_sided else (0.0, known[1]), _bound(cos.dtype, potential))


def _beyond(smallest_and_largest: tuple[float, float], bound: float) -> bool:
    # Written so that a NaN is not taken for a number that is small enough.
    low, high = smallest_and_largest
    return not (-bound < low and high < bound)


class ClosePairs(NamedTuple):
    """The close pairs of one panel.

    Attributes:
        where: int64 indices into the flattened block, every one that has to be taken out.
        first, second: int64 row numbers in the weight; each unordered pair once.
    """

    where: Tensor
    first: Tensor
    second: Tensor

    @staticmethod
    def find(
        cos: Tensor, batch: PanelBatch, potential: Potential, known: tuple[float, float] | None = None
    ) -> ClosePairs | None:
        """The pairs of a block that are too close for its dtype, or too nearly opposite if the potential cares.

        `known` are the block's extremes, where they are. Returns None where there are none.
        """
        if not has_close_pairs(cos, potential, known):
            return None
        bound = _bound(cos.dtype, potential)
        mask = cos.abs() >= bound if potential.two_sided else cos >= bound
        where = mask.view(-1).nonzero().flatten()
        row = torch.div(where, cos.shape[-1], rounding_mode="floor")
        shift = torch.div(row, cos.shape[-2], rounding_mode="floor") * batch.stride
        first = row % cos.shape[-2] + batch.first.row + shift
        second = where % cos.shape[-1] + batch.first.column + shift
        if batch.first.diagonal:  # which shows each pair twice
            once = second > first
            first, second = first[once], second[once]
        return ClosePairs(where, first, second)

    def too_many(self, pairs: int) -> bool:
        """Whether matrix products in float64 would be cheaper than one pair after the other."""
        return len(self.first) > max(256, _SHARE_THAT_IS_TOO_MANY * pairs)

    def take_out_(self, block: Tensor, value: float = 0.0) -> None:
        """Set the places of these pairs in a contiguous block to `value`."""
        block.view(-1).index_fill_(0, self.where, value)


class ClosePairSum(NamedTuple):
    """The ordered-pair sum over close pairs, and how many that coincide were left out of it."""

    value: float
    coincident: int


def sum_close_pairs(
    pairs: ClosePairs,
    weight: Tensor,
    potential: Potential,
    grad: Tensor | None,
    *,
    leave_out_below: float | None,
    steps: Tensor | None = None,
) -> ClosePairSum:
    """Sum `F` over close pairs in float64, adding the slopes' products to `grad` `(n, d)` in place.

    The gradient of a pair at distance zero, or exactly opposite, has no direction; it is taken as zero, which is what
    a softened potential gives there, unless the potential parts such rows. For that `steps` says how many rows further
    down the layer the second rows lie, where the rows of `weight` are not all those in between.
    """
    total, coincident = 0.0, 0
    copies: list[tuple[Tensor, Tensor]] = []
    step = max(1, _ELEMENTS_AT_A_TIME // weight.shape[1])
    for start in range(0, len(pairs.first), step):
        first, second = pairs.first[start : start + step], pairs.second[start : start + step]
        u, v = _unit(weight, first), _unit(weight, second)
        difference, mean = u - v, u + v
        near, far = _squared(difference, mean)
        value, slope = potential.from_chords(near, far)
        aligned, opposite = near <= _SAME, far <= _SAME
        if leave_out_below is not None:
            closest = torch.minimum(near, far) if potential.space == "half" else near
            coincide = closest <= leave_out_below
            coincident += int(coincide.sum())
            value = value.masked_fill(coincide, 0.0)
        total += 2 * float(value.sum())
        if grad is not None:
            # F' v and F' (v - u) differ along u only, which the projection on the sphere removes; the difference is
            # the one that does not cancel. Near -1 it is v + u.
            slope = slope.masked_fill(aligned | opposite, 0.0).unsqueeze(1) * 2
            mirrored = (near > far).unsqueeze(1)
            on_u = slope * torch.where(mirrored, mean, -difference)
            on_v = slope * torch.where(mirrored, mean, difference)
            add_rows_(grad, first, on_u.to(grad.dtype))
            add_rows_(grad, second, on_v.to(grad.dtype))
            if potential.parts:
                closest = torch.minimum(near, far) if potential.space == "half" else near
                found = (closest <= SAME_BELOW).nonzero().flatten()
                copies.append((start + found, mirrored.flatten()[found]))
    if grad is not None and copies:
        found, opposite = (torch.cat(parts) for parts in zip(*copies, strict=True))
        first, second = pairs.first[found], pairs.second[found]
        push_copies_apart_(grad, first, second, second - first if steps is None else steps[found], opposite, potential)
    return ClosePairSum(total, coincident)


def squared_chords(weight: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The squared chord of each pair of rows, and that to the mirror image, `2 - 2c` and `2 + 2c`, in float64."""
    u, v = _unit(weight, first), _unit(weight, second)
    return _squared(u - v, u + v)


def squared_chords_of(pairs: ClosePairs, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The same of all pairs of one panel or piece, each once, a few at a time."""
    step = max(1, _ELEMENTS_AT_A_TIME // weight.shape[1])
    parts = zip(pairs.first.split(step), pairs.second.split(step), strict=True)
    near, far = zip(*(squared_chords(weight, first, second) for first, second in parts), strict=True)
    return torch.cat(near), torch.cat(far)


def _squared(difference: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    near, far = difference.square().sum(1), mean.square().sum(1)
    # `near + far = 4` exactly: the large one of the two is the one that rounding cannot have hurt.
    return torch.where(near < far, near, 4 - far), torch.where(near < far, 4 - near, far)


def add_rows_(grad: Tensor, index: Tensor, rows: Tensor) -> None:
    """`grad[index] += rows`, repeated indices included, in an order that does not change from run to run."""
    # On CUDA index_add_ adds in any order; index_put_ sorts first there, and only there.
    if grad.is_cuda:
        grad.index_put_((index,), rows, accumulate=True)
    else:
        grad.index_add_(0, index, rows)


def _unit(weight: Tensor, index: Tensor) -> Tensor:
    rows = weight[index].double()
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)

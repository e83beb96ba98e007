"""The energy of whole modules: k directions of millions of coordinates, which are never put together.

Note [A module as a direction]
A member (an expert, a head, a layer) is m matrices. Each is scaled to Frobenius norm 1, so that none dominates, and
the cosine of two members is the mean over their matrices of the matrices' cosines: they are points on a product of m
spheres. The energy is that of k neurons with these cosines, in full space: a module of which all signs are flipped is
another module, as far from the first as can be (a gated expert, -g, -u, -d, does not compute what g, u, d does).
Half space, in which neurons are mirrored, would pull it back to a right angle.

Note [Memory]
All of it follows from the m Gram matrices (k, k) of inner products of the members' matrices, which are sums over
coordinates. One walk adds them up, block by block of coordinates; another makes the gradient, which is a (k, k) matrix
times the block, where it is stored. Beside the weights and their gradients there are a few blocks: 5 to 29 MiB were
measured where 8 experts have 192. Ranks that hold some coordinates each, of all members, add up their Gram matrices.
Rejected: the stacked members as rows of the exact walk,
whose copy, unit rows and gradient are three times the weights.

Note [Members that coincide]
Upcycled experts are all equal, and get the same gradients as long as they get the same tokens. As with neurons, see
Note [Copies], they are pushed apart by the gradient of potentials with `parts`, as hard as at a right angle: each
along signs of its own, hashed from the place of a coordinate in its weight, so that every rank, engine and device has
the same ones, whichever part it holds, and no direction is kept.

Measured: a Mixtral of 2 layers with 4 equal experts of 32 x 48, 50 steps of AdamW (5e-4, 8 x 16 tokens), every token
to every expert; largest cosine of two flattened experts, and the task's loss over these steps: without it equal to the
bit, 3.99; weight 0.1: 0.72, 4.01; weight 1: 0.67, 4.06. With two experts a token: 0.96, 3.98; 0.73, 4.01; 0.67, 4.06.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy.potential import RIGHT_ANGLE, Potential
from hf_mhe.energy.rows import NEGLIGIBLE
from hf_mhe.energy.walks.copies import SAME_BELOW

_BLOCK = 1 << 20  # elements of all members: 4 MiB of float32
_ANTIPODAL = 1e-12  # squared chord: slopes are finite from there on


class Slope(NamedTuple):
    """The energy of k members of m matrices, and what makes its gradient of the members' matrices.

    Attributes:
        energy: 0-dim float64.
        weights: `(m, k, k)` float64: the gradient of matrix j of member a is `sum_b weights[j, a, b] * matrix j of b`.
        push: `(m, k, k)` float64, or None: to it comes `sum_b push[j, a, b] * signs of b`, where members coincide.
    """

    energy: Tensor
    weights: Tensor
    push: Tensor | None

    def scaled(self, factor: Tensor | float) -> Slope:
        """Of so many times the energy."""
        return Slope(factor * self.energy, factor * self.weights, None if self.push is None else factor * self.push)


class Place(NamedTuple):
    """Where elements of a matrix lie in their weight: the sum of `along`, views of their shape, and of a seed."""

    along: tuple[Tensor, ...]
    seed: int


def product_dtype(members: Sequence[Tensor], potential: Potential) -> torch.dtype:
    """The precision of a block's products, whose sums are float64.

    Copies are told from members a thousandth apart by the squared chord 1e-6: float32 suffices, and tf32 does not.
    Unbounded energies are as exact as their smallest chord.
    """
    device = members[0].device.type
    if device == "mps":
        return torch.float32
    exact = potential.softening == 0 and potential.closest == 0
    small = len(members) ** 2 * members[0].numel() <= _BLOCK
    tf32 = device == "cuda" and torch.backends.cuda.matmul.allow_tf32
    wide = any(member.dtype == torch.float64 for member in members)
    return torch.float64 if exact or small or tf32 or wide else torch.float32


def gram(members: Sequence[Tensor], potential: Potential) -> Tensor:
    """The inner products of the members' matrices, or of those of their elements that are here: `(k, k)` float64.

    Args:
        members: k tensors of one shape, on one device, of any floating dtypes.
        potential: of the energy that it is for.
    """
    k, dtype = len(members), product_dtype(members, potential)
    total = torch.zeros(k, k, dtype=_wide(members[0]), device=members[0].device)
    for block in _blocks(members[0].shape, k):
        rows = _rows([member[block] for member in members], dtype)
        total += rows @ rows.t()
    return total


def slope_of(grams: Tensor, sizes: Sequence[int], potential: Potential) -> Slope:
    """The energy of members from the Gram matrices of their whole matrices, and what makes its gradient.

    A member of which a matrix is zero, or shorter than 2^-12 of the longest, has no direction and takes no part. With
    fewer than two others the energy is 0.

    Args:
        grams: `(m, k, k)` floating.
        sizes: the number of elements of each matrix.
        potential: of a pair of members; in full space.
    """
    grams = grams.to(_wide(grams))
    m, k, _ = grams.shape
    length = grams.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()  # (m, k)
    live = ((length > 0) & (length >= NEGLIGIBLE * length.amax(1, keepdim=True))).all(0)
    count = int(live.sum())
    inverse = torch.where(live, 1 / length.masked_fill(length == 0, 1), 0.0)
    own = inverse[:, :, None] * grams * inverse[:, None, :]  # cosines of each matrix
    near = (2 - 2 * own.mean(0)).clamp(min=0)
    pairs = live[:, None] & live[None, :] & ~torch.eye(k, dtype=torch.bool, device=grams.device)
    value, slope = potential.from_chords(near, (4 - near).clamp(min=_ANTIPODAL))
    scale = potential.scale_of(count, "mean") if count > 1 else 0.0
    # Both orders of a pair are in the sum, and a cosine moves with both of its members.
    slope = torch.where(pairs, 2 * scale * slope, 0.0)
    energy = scale * torch.where(pairs, value, 0.0).sum()
    energy = torch.where(torch.isfinite(grams).all(), energy, torch.nan)
    weights = slope * inverse[:, :, None] * inverse[:, None, :] / m
    onto = (slope * own).sum(2) * inverse.square() / m  # the part along the member itself, which its sphere takes out
    weights = weights - torch.diag_embed(onto)
    push = _push(pairs & (near < SAME_BELOW), inverse, sizes, scale, potential) if potential.parts else None
    return Slope(energy, weights, push)


def _push(copies: Tensor, inverse: Tensor, sizes: Sequence[int], scale: float, potential: Potential) -> Tensor | None:
    """Along the difference of the signs of two members that coincide; see Note [Members that coincide]."""
    if not bool(copies.any()):
        return None
    apart = copies.to(inverse.dtype)
    apart = apart - torch.diag_embed(apart.sum(1))
    strength = scale * 2 * potential.slope_at(RIGHT_ANGLE) / 2**0.5  # signs of two are at a right angle
    unit = torch.tensor([size**-0.5 for size in sizes], dtype=inverse.dtype, device=inverse.device)
    return strength / len(sizes) * (unit[:, None] * inverse)[:, :, None] * apart


def add_gradient_(
    into: Sequence[Tensor | None],
    members: Sequence[Tensor],
    weights: Tensor,
    push: Tensor | None,
    places: Sequence[Place],
    potential: Potential,
) -> None:
    """Add the gradient of one matrix of the members to where it is wanted.

    Args:
        into: views like `members`; None where no gradient is wanted.
        members: as in `gram`.
        weights: `(k, k)`, of this matrix; see `Slope`.
        push: `(k, k)` or None.
        places: of the members' elements; used where there is a push.
        potential: as in `gram`.
    """
    wanted = [a for a, target in enumerate(into) if target is not None]
    dtype = product_dtype(members, potential)
    factors = weights[wanted].to(dtype)
    for block in _blocks(members[0].shape, len(members)):
        found = factors @ _rows([member[block] for member in members], dtype)
        if push is not None:
            signs = torch.stack([_signs(place, block, dtype) for place in places])
            found += push[wanted].to(dtype) @ signs.to(found.device)
        for a, gradient in zip(wanted, found, strict=True):
            target = into[a]
            assert target is not None
            part = target[block]
            part += gradient.view(part.shape).to(part)


def places_in(shape: Sequence[int], *, axis: int = 0, run: tuple[int, int] | None = None) -> list[Tensor]:
    """The places of the elements of a weight, or of a part of it, one int64 tensor for each axis, on the CPU.

    Each is of the part's shape and has the memory of its one axis. An element's place is the sum of its entries.

    Args:
        shape: of the weight.
        axis: along which the part is cut out.
        run: where it begins there, and its length; None for the whole weight.
    """
    runs = [(0, size) for size in shape]
    if run is not None:
        runs[axis] = run
    part = [length for _, length in runs]
    found = []
    for at, (start, length) in enumerate(runs):
        places = torch.arange(start, start + length, device="cpu") * math.prod(shape[at + 1 :])
        found.append(places.view(-1, *(1,) * (len(shape) - at - 1)).expand(part))
    return found


def _rows(members: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    rows = torch.empty(len(members), members[0].numel(), dtype=dtype, device=members[0].device)
    for row, member in zip(rows, members, strict=True):
        row.view(member.shape).copy_(member)
    return rows


Block = tuple[slice, ...]


def _blocks(shape: Sequence[int], k: int) -> Iterator[Block]:
    """Slices of the first axes, so that k tensors of them have a block's elements."""
    if 0 in shape:
        return
    steps, left = [], max(1, _BLOCK // k)
    for axis in reversed(range(len(shape))):  # the last axes whole, as far as they fit
        steps.append(min(shape[axis], max(1, left)))
        left //= shape[axis]
    ranges = [range(0, size, step) for size, step in zip(shape, reversed(steps), strict=True)]
    for starts in itertools.product(*ranges):
        yield tuple(slice(start, start + each.step) for start, each in zip(starts, ranges, strict=True))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


_MIX = (-49064778989728563, -4265267296055464877)  # of MurmurHash3's finalizer, as signed numbers
_STEP = 0x9E3779B9


def _signs(place: Place, block: Block, dtype: torch.dtype) -> Tensor:
    """+1 or -1 for each element, flat; the same wherever it is computed."""
    found = functools.reduce(torch.add, [along[block] for along in place.along])
    found = found + place.seed * _STEP
    for factor in _MIX:  # wraps around, on every device
        found = (found ^ (found >> 33)) * factor
    found = found ^ (found >> 33)
    return (1 - 2 * (found & 1)).to(dtype).flatten()

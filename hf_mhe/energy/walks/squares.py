"""The exact walk over many small matrices at once: the cosines of each are one square, and each pass is over all.

Note [Matrices at a time]
A layer of some hundred neurons has less work than calls: 64 x 27 took ten times as long alone as in a batch of them.
As many go together as keep their cosines and slopes in the second-level cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.walks.close_pairs import has_close_pairs
from hf_mhe.energy.walks.closed_forms import evaluate_, fill_diagonal_
from hf_mhe.energy.walks.panels import one_square
from hf_mhe.energy.workspace import scratch

_COSINES = 3 << 17  # 1.5 MiB of float32
_COORDINATES = 1 << 20
_COSINES_CUDA = 1 << 24


def batch_size(n: int, d: int, device: torch.device) -> int:
    """How many `(n, d)` matrices `walk_squares` should be given in one call; 0 where one has several panels."""
    if not one_square(n, device):
        return 0
    cosines = _COSINES if device.type == "cpu" else _COSINES_CUDA
    return min(cosines // (n * n), _COORDINATES // (n * d))


def walk_squares(
    weight: Tensor, norm: Tensor, potential: Potential, *, scale: float = 1.0, out: Tensor | None = None
) -> list[float] | None:
    """Sum the pair function over all ordered pairs of each matrix, and write `scale` times the gradients if wanted.

    Args:
        weight: `(B, n, d)`, float32 or float64, contiguous.
        norm: `(B, n, 1)`, the rows' lengths, neither zero nor extreme.
        potential: the pair function.
        scale: a factor of the gradients.
        out: where they go, same shape and dtype; None where they are not wanted.

    Returns:
        The sums, or None where a pair is too close for the precision of the products: those want `blocked.walk`.
    """
    # Note [Neither unit rows nor tangents]
    # With u_i = w_i / |w_i| and P the slopes, the gradient at row i is (sum_j P_ij u_j - t_i u_i) / |w_i|, where
    # t_i = sum_j P_ij c_ij projects on the sphere. That is one product with the rows as they came, of the matrix
    # P_ij / (|w_i| |w_j|) with -t_i / |w_i|^2 on its diagonal: all passes are over n x n cosines, and none over n x d
    # coordinates, of which there are as many or more.
    count, n, _ = weight.shape
    cos, spare, kept = (
        scratch(f"square {k}", count * n * n, weight.dtype, weight.device).view(count, n, n) for k in range(3)
    )
    inverse = norm.reciprocal()
    lengths = inverse * inverse.mT
    products_of_rows(weight, cos)
    cos.mul_(lengths)
    fill_diagonal_(cos)
    if has_close_pairs(cos, potential):
        return None
    if out is not None:
        kept.copy_(cos)
    block = evaluate_(potential, cos, None if out is None else spare)
    block.take_out_(fill_diagonal_)
    values = block.totals()
    if block.slope is None or out is None:
        return values
    tangent = kept.mul_(block.slope).sum(dim=-1)
    block.slope.mul_(lengths)
    block.slope.diagonal(dim1=-2, dim2=-1).copy_(tangent.mul_(inverse.squeeze(-1).square()).neg_())
    torch.baddbmm(weight, block.slope, weight, beta=0, alpha=2 * scale * block.slope_factor, out=out)
    return values


# Three quarters of the products are enough, the last one being a copy; below this many multiplications more calls cost
# what they save.
_MIRRORED_ABOVE = 1 << 27


def products_of_rows(weight: Tensor, out: Tensor) -> None:
    """`weight @ weight.mT`, `(B, n, d)` to `(B, n, n)`, in `out`."""
    n, d = weight.shape[-2:]
    if n * n * d < _MIRRORED_ABOVE:
        torch.bmm(weight, weight.mT, out=out)
        return
    half = n // 2
    left, right = weight[:, :half], weight[:, half:]
    torch.bmm(weight, left.mT, out=out[:, :, :half])
    torch.bmm(right, right.mT, out=out[:, half:, half:])
    out[:, :half, half:].copy_(out[:, half:, :half].mT)

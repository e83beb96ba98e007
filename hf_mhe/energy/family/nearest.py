"""The blocked searches, in O(n d) memory: each neuron's nearest other one, and the largest entry of a Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.distances.spherical import SphericalDistance
from hf_mhe.energy.walks.panels import block_shape, panels

# Note [Neighbours that a float32 product cannot order]
# Products in float32 err by a few 1e-7 in the cosine. At an angle of 8 degrees (a cosine of 0.99) that is 1e-5 of
# the angle at most; closer than that the order of two candidates becomes a matter of chance. Rows whose nearest
# cosine is beyond this limit are searched again in float64.
_UNSURE_BEYOND = 0.99


@torch.no_grad()
def nearest_neighbours(unit: Tensor, exact: Tensor, *, mirrored: bool) -> Tensor:
    """Each row's nearest other row.

    Args:
        unit: `(n, d)` unit rows, in the precision that the products run in.
        exact: the same rows in float64.
        mirrored: whether the mirror image of a row is as near as the row itself (half space).

    Returns:
        `(n,)` int64 row numbers; of equally near rows, one of them. Half the work of the full product, `n^2 d`
        operations; memory `O(n d)`.
    """
    n = len(unit)
    best = torch.full((n,), -2.0, dtype=unit.dtype, device=unit.device)
    index = torch.zeros(n, dtype=torch.int64, device=unit.device)
    for panel in panels(n, unit.device):
        cos = unit[panel.row : panel.row_end] @ unit[panel.column : panel.column_end].t()
        if mirrored:
            cos.abs_()
        if panel.diagonal:
            cos.fill_diagonal_(-2.0)
        _improve(best, index, panel.row, *cos.max(dim=1), panel.column)
        _improve(best, index, panel.column, *cos.max(dim=0), panel.row)
    if unit.dtype != exact.dtype:
        _search_again(exact, index, (best > _UNSURE_BEYOND).nonzero().flatten(), mirrored)
    return index


def _improve(best: Tensor, index: Tensor, start: int, values: Tensor, found: Tensor, offset: int) -> None:
    part = slice(start, start + len(values))
    better = values > best[part]
    best[part] = torch.where(better, values, best[part])
    index[part] = torch.where(better, found + offset, index[part])


def _search_again(exact: Tensor, index: Tensor, rows: Tensor, mirrored: bool) -> None:
    block, _ = block_shape(len(exact), exact.device)
    for part in rows.split(block):
        cos = exact[part] @ exact.t()
        if mirrored:
            cos.abs_()
        cos[torch.arange(len(part), device=part.device), part] = -2.0
        index[part] = cos.argmax(dim=1)


@torch.no_grad()
def largest_deviation(rows: Tensor) -> tuple[int, int]:
    """Where `|W W^T - I|` is largest, over all entries, for rows `(n, d)`; memory `O(n d)`."""
    n = len(rows)
    best, where = -1.0, (0, 0)
    for panel in panels(n, rows.device):
        gram = rows[panel.row : panel.row_end] @ rows[panel.column : panel.column_end].t()
        if panel.diagonal:
            gram.diagonal().sub_(1)
        value, flat = gram.abs_().flatten().max(dim=0)
        if float(value) > best:
            best = float(value)
            where = (panel.row + int(flat) // gram.shape[1], panel.column + int(flat) % gram.shape[1])
    return where


def pair_distance(first: Tensor, second: Tensor, rho: SphericalDistance, *, mirrored: bool) -> Tensor:
    """Distance of paired unit rows from their coordinates; differentiable, with gradient 0 at 0."""
    near, far = (torch.linalg.vector_norm(first + sign * second, dim=-1) for sign in (-1, 1))
    if mirrored:
        near, far = torch.minimum(near, far), torch.maximum(near, far)
    return rho.from_chords(near, far)

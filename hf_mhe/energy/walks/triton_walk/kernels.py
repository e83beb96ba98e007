"""The two kernels of the walk: cosines to slopes in one launch, and slopes times rows."""

# A kernel's arguments are pointers and tiles, which Python has no types for; Triton ships none.
# mypy: disable-error-code="no-untyped-def, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from hf_mhe.energy.walks.triton_walk.pair_functions import pair_function

# WIDEN turns the tiles to float32 before they are multiplied, which changes no product of two half-precision numbers.
# It is for the interpreter, which multiplies the bits of bf16 numbers as if they were integers (Triton 3.9).


@triton.jit
def tile_of_program(tiles_m, tiles_n, GROUP: tl.constexpr):
    """The tile of this program, in an order that keeps GROUP rows of tiles together in the second-level cache."""
    program = tl.program_id(0)
    in_group = GROUP * tiles_n
    first_m = program // in_group * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    return first_m + program % in_group % height, program % in_group // height


@triton.jit
def slopes_kernel(
    rows,  # (n, d) contiguous, any floating dtype
    scale,  # (n,) float32: what makes a row's length one
    slopes,  # (row_end - row, columns): rows [row, row_end) against rows [row, n), and zeros
    partial,  # (programs,) float32: sum of F over the pairs i < j of each tile
    counter,  # () int32: close pairs met so far
    listed,  # (capacity, 2) int32: i and j of each of them
    n,
    d,
    row,
    row_end,
    slopes_stride,
    columns,  # n - row, rounded up
    capacity,
    close_cosine,
    s,
    softening_squared,
    tiles_m,
    tiles_n,
    S: tl.constexpr,
    DISTANCE: tl.constexpr,
    HALF: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    GRADIENT: tl.constexpr,
    EVEN_K: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Cosines of one tile, their potential summed, `scale_i scale_j dF/dc` stored, close pairs left out and listed."""
    tile_m, tile_n = tile_of_program(tiles_m, tiles_n, GROUP)
    first_i = row + tile_m * BM
    first_j = row + tile_n * BN
    if first_j + BN <= first_i:  # wholly below the diagonal: its mirror image is another program's
        return
    i = first_i + tl.arange(0, BM)
    j = first_j + tl.arange(0, BN)
    k = tl.arange(0, BK)
    # Rows past the end read the last one, and are masked when they count: no mask in the loop. Within a tile offsets
    # are 32 bits wide; 64-bit ones would fill the registers.
    i_read = tl.minimum(i, n - 1)
    j_read = tl.minimum(j, n - 1)
    left = rows + first_i.to(tl.int64) * d
    right = rows + tl.minimum(first_j, n - 1).to(tl.int64) * d
    left_at = (i_read - first_i)[:, None] * d + k[None, :]
    right_at = (j_read - tl.minimum(first_j, n - 1))[None, :] * d + k[:, None]
    cos = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, d, BK):
        if EVEN_K:
            a = tl.load(left + left_at)
            b = tl.load(right + right_at)
        else:
            a = tl.load(left + left_at, mask=k[None, :] < d - start, other=0.0)
            b = tl.load(right + right_at, mask=k[:, None] < d - start, other=0.0)
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        cos = tl.dot(a, b, cos, input_precision=PRECISION)
        left += BK
        right += BK
    scales = tl.load(scale + i_read)[:, None] * tl.load(scale + j_read)[None, :]
    cos = cos * scales

    pair = (i < row_end)[:, None] & (j < n)[None, :] & (i[:, None] < j[None, :])
    close = cos >= close_cosine
    if TWO_SIDED:
        close = close | (cos <= -close_cosine)
    close = close & pair
    # A full list is not added to: the count of a large layer that has collapsed would pass 2^31.
    if (tl.sum(close.to(tl.int32)) > 0) & (tl.load(counter, volatile=True) <= capacity):
        slot = tl.atomic_add(counter + tl.zeros((BM, BN), dtype=tl.int32), 1, mask=close)
        listable = close & (slot < capacity)
        tl.store(listed + 2 * slot, tl.broadcast_to(i[:, None], (BM, BN)), mask=listable)
        tl.store(listed + 2 * slot + 1, tl.broadcast_to(j[None, :], (BM, BN)), mask=listable)

    counted = pair & (close == 0)
    value, slope = pair_function(tl.where(counted, cos, 0.0), s, softening_squared, S, DISTANCE, HALF)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(counted, value, 0.0)))
    if GRADIENT:
        # One number serves both places of a pair, so that a pair which rounding puts on different sides of the limit
        # at (i, j) and (j, i) cannot be counted half.
        stored = tl.where(counted, slope * scales, 0.0).to(slopes.dtype.element_ty)
        corner = slopes + (tile_m * BM).to(tl.int64) * slopes_stride + tile_n * BN
        at_i = tl.arange(0, BM)[:, None]
        at_j = tl.arange(0, BN)[None, :]
        # Columns past the end, up to a whole step of the product, are zero: `stored` is, where nothing is counted.
        inside = (i < row_end)[:, None] & (j < row + columns)[None, :]
        tl.store(corner + at_i * slopes_stride + at_j, stored, mask=inside & (i[:, None] <= j[None, :]))
        if first_j < row_end:
            corner = slopes + (tile_n * BN).to(tl.int64) * slopes_stride + tile_m * BM
            tl.store(corner + at_j * slopes_stride + at_i, stored, mask=pair & (j < row_end)[None, :])


@triton.jit
def add_product_kernel(
    out,  # (m, n) float32, its second stride 1: read and written
    left,  # (m_readable >= m, k), any strides; zero beyond k_of_right
    right,  # (k_of_right, n), its second stride 1; multiplied in the dtype of `left`
    m,
    m_readable,
    n,
    k,  # a multiple of BK
    k_of_right,
    out_stride,
    left_stride_m,
    left_stride_k,
    right_stride,
    tiles_m,
    tiles_n,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """`out += left @ right`, one tile of `out` per program, accumulated in float32 in the order of k."""
    tile_m, tile_n = tile_of_program(tiles_m, tiles_n, GROUP)
    in_m = tl.arange(0, BM)
    in_n = tl.arange(0, BN)
    at_k = tl.arange(0, BK)
    # A mask along the direction in which memory runs lets loads be wide only where its bound is a multiple of their
    # width: hence m_readable, which the padding of the panel makes one.
    left_mask = (tile_m * BM + in_m < m_readable)[:, None]
    right_mask = (tile_n * BN + in_n < n)[None, :]
    a_base = left + (tile_m * BM).to(tl.int64) * left_stride_m
    b_base = right + tile_n * BN
    a_at = in_m[:, None] * left_stride_m + at_k[None, :] * left_stride_k
    b_at = at_k[:, None] * right_stride + in_n[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        a = tl.load(a_base + a_at, mask=left_mask, other=0.0)
        b = tl.load(b_base + b_at, mask=right_mask & (at_k[:, None] < k_of_right - start), other=0.0)
        b = b.to(a.dtype)
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b, total)
        a_base += BK * left_stride_k
        b_base += BK * right_stride
    place = out + (tile_m * BM).to(tl.int64) * out_stride + tile_n * BN + in_m[:, None] * out_stride + in_n[None, :]
    mask = (tile_m * BM + in_m < m)[:, None] & right_mask
    tl.store(place, tl.load(place, mask=mask) + total, mask=mask)

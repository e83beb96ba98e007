"""The walk over panels of pairs: what the kernels are given, and what is left to torch."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.walks import blocked
from hf_mhe.energy.walks.blocked import PairSum
from hf_mhe.energy.walks.close_pairs import ClosePairs, coincident_below, sum_close_pairs
from hf_mhe.energy.walks.panels import Panel, strips
from hf_mhe.energy.walks.triton_walk.operands import Operands, operands
from hf_mhe.errors import MHEError

# Note [Panels on a GPU]
# The cosines of a block row are computed, turned into slopes and stored once, in a panel that the two gradient
# products then read: `G_I += P U` and, for the columns past the diagonal square, `G_J += P^T U_I`. Counted per pair of
# neurons, the panel costs one store and two loads of an element, 6 bytes in bf16, against the 6 d operations of the
# three products: at d = 4096 that is 4096 operations a byte, at d = 256 still 256, where the data sheet of an H200 has
# about 200 bf16 operations to a byte of memory. Each panel also reads and writes the float32 gradient of its columns
# once, 8 bytes for 2 R operations with R rows a panel; hence R >= 1024. With R = d the bf16 panel is half the size of
# a float32 input, and with the gradient and the unit rows the walk holds 2.5 inputs; in float32 R = d / 2, for the
# same bytes.
#
# Only the tiles with j >= i are computed, 3 n^2 d operations in all. Inside the diagonal square the kernel stores
# each slope at (i, j) and at (j, i), so the square costs one product in place of two.
#
# Rejected: one kernel from cosines to gradient, as attention does it. A tile of the gradient is as wide as d, 4096
# float32 numbers a row, and fits neither registers nor shared memory; cut into strips of 256, every strip recomputes
# all cosines, 16 times n^2 d operations more. Rejected too: the full square without symmetry, which needs no second
# product but 4 n^2 d operations.

# Note [Same bits]
# Each number is written by one program in a fixed order: a program owns its tile of slopes, its partial sum and, in
# the products, its tile of the gradient, accumulated in the order of k. There is no atomic addition of floats, no
# split over k, and no autotuning, which may choose another tile, hence another order, in the next run. The close
# pairs are listed through an integer counter, in any order, and sorted before they are summed. Rejected: scattering
# both products from one program with atomics, which saves the panel and gives other last bits in every run.

# Panels are as wide as a whole number of steps of the product, with zeros at the end, and begin there: no load of the
# product is cut by the end of a row.
_STEP = 64

# Slots of the list of close pairs: one in 64 pairs, as many as the blocked walk recomputes before it turns to
# float64; at most 8 MiB.
_SHARE_OF_SLOTS = 64
_FEWEST_SLOTS, _MOST_SLOTS = 256, 1 << 20


class Tiles(NamedTuple):
    """Block shapes of one kernel and how Triton is to schedule it."""

    m: int
    n: int
    k: int
    group: int
    warps: int
    stages: int


class Tiling(NamedTuple):
    """How the pairs are tiled: the fewest and the most rows of a panel, and the tiles of the two kernels."""

    fewest_rows: int
    most_rows: int
    slopes: Tiles
    product: Tiles


# Note [Tiles]
# A tile of m x n needs (m + n) k elements a stage in shared memory, and m n float32 accumulators in registers, which
# the potential then needs again, several times: 128 x 128 on 8 warps is a quarter of the registers. The product,
# without a potential, takes the wider tile on Hopper, whose shared memory allows it (227 KiB; 99 KiB on the smallest
# cards since compute capability 8.0). Under the interpreter the tiles are small and uneven, so that matrices of a few
# dozen rows have edges, several panels and tiles on both sides of the diagonal.
INTERPRETED = Tiling(64, 64, Tiles(32, 64, 32, 2, 4, 1), Tiles(64, 32, 32, 2, 4, 1))
AMPERE = Tiling(1024, 4096, Tiles(128, 128, 32, 8, 8, 3), Tiles(128, 128, 32, 8, 8, 3))
HOPPER = Tiling(1024, 4096, Tiles(128, 128, 64, 8, 8, 3), Tiles(128, 256, 64, 8, 8, 3))
# Float32 products have no matrix unit: the tile lives on the multiply-add units, and is smaller for it. (Three tf32
# products a pair, "tf32x3", would bring them back to the matrix units; rejected while nothing shows what their sum
# loses near a cosine of one.)
_FLOAT32_TILES = Tiles(64, 64, 16, 8, 8, 2)
_TF32_TILES = Tiles(128, 128, 32, 8, 8, 3)


# Distances with a pair function in `pair_functions.py`, by the number that it is compiled for. Another one is walked
# by torch's operations, on the GPU too.
DISTANCES = {"euclidean": 0, "angular": 1}


@functools.cache
def available(device: torch.device) -> bool:
    """Whether `walk` runs on this device: an NVIDIA GPU of compute capability 8.0 or more, and Triton installed."""
    if device.type != "cuda" or torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def walk(
    unit: Tensor, weight: Tensor, potential: Potential, *, gradient: bool, leave_out_coincident: bool = False
) -> PairSum:
    """Sum the pair function over all ordered pairs, exactly, with its gradient if wanted; as `blocked.walk`.

    The products run in the precision of the weight: bf16 and fp16 rows as they came, float32 rows in float32, or in
    tf32 where torch's setting for CUDA products allows it; always accumulated in float32.

    Args:
        unit: `(n, d)` float32, rows of length one, on a CUDA device (or any, under Triton's interpreter).
        weight: `(n, d)`, the rows as they came, any floating dtype.
        potential: the pair function.
        gradient: whether to compute the gradient too.
        leave_out_coincident: count pairs at distance zero and leave them out of the sum.

    Raises:
        MHEError: `unit` is not float32.

    Costs `3 n^2 d` operations and `O(n d)` memory.
    """
    if unit.dtype != torch.float32:
        raise MHEError(f"the Triton walk takes unit rows in float32; got {unit.dtype}")
    options: dict[str, Any] = {"gradient": gradient, "leave_out_coincident": leave_out_coincident}
    if potential.distance not in DISTANCES:
        return blocked.walk(unit, weight, potential, **options)
    on_device = torch.cuda.device(unit.device) if unit.is_cuda else contextlib.nullcontext()
    with on_device:
        result = _walk(operands(unit, weight), unit, weight, potential, **options)
    if result is None:
        # More close pairs than slots: a layer that has collapsed to a few directions. The blocked walk does such
        # panels in float64.
        return blocked.walk(unit, weight, potential, **options)
    return result


def _walk(
    ops: Operands, unit: Tensor, weight: Tensor, potential: Potential, *, gradient: bool, leave_out_coincident: bool
) -> PairSum | None:
    n, d = unit.shape
    device = unit.device
    tiling = _tiling(device)
    rows = max(tiling.fewest_rows, min(tiling.most_rows, 2 * d // ops.slope_dtype.itemsize)) // _STEP * _STEP
    rows = min(n, rows)
    capacity = max(_FEWEST_SLOTS, min(_MOST_SLOTS, n * n // (2 * _SHARE_OF_SLOTS)))
    counter = torch.zeros((), dtype=torch.int32, device=device)
    listed = torch.empty(capacity, 2, dtype=torch.int32, device=device)
    width = _whole_steps(n)
    slopes = torch.empty(rows * width if gradient else 1, dtype=ops.slope_dtype, device=device)
    grad = torch.zeros_like(unit) if gradient else None
    partial: list[Tensor] = []

    for panel in strips(n, rows):
        block = slopes.view(-1, width)[: panel.rows] if gradient else slopes
        partial.append(_sums_and_slopes(ops, potential, panel, block, counter, listed, tiling, gradient=gradient))
        if grad is not None:
            _add_product_(grad[panel.row : panel.row_end], block, ops.rows[panel.row :], tiling)
            if panel.row_end < n:
                right = ops.rows[panel.row : panel.row_end]
                _add_product_(grad[panel.row_end :], block[:, panel.rows :].t(), right, tiling)

    close = int(counter)
    if close > capacity:
        return None
    value = 2 * float(torch.cat(partial).sum(dtype=torch.float64))
    if grad is not None:
        grad.mul_((2 / ops.scale).unsqueeze(1))
    if close == 0:
        return PairSum(value, grad, 0)
    first, second = listed[:close].long().unbind(1)
    order = (first * n + second).argsort()
    pairs = ClosePairs(order[:0], first[order], second[order])
    below = coincident_below(weight.dtype) if leave_out_coincident else None
    exact = sum_close_pairs(pairs, weight, potential, grad, leave_out_below=below)
    return PairSum(value + exact.value, grad, exact.coincident)


@functools.cache
def _tiling(device: torch.device) -> Tiling:
    if device.type != "cuda":
        return INTERPRETED
    return HOPPER if torch.cuda.get_device_capability(device) == (9, 0) else AMPERE


def _sums_and_slopes(
    ops: Operands,
    potential: Potential,
    panel: Panel,
    slopes: Tensor,
    counter: Tensor,
    listed: Tensor,
    tiling: Tiling,
    *,
    gradient: bool,
) -> Tensor:
    # The sums of F over the pairs i < j of each tile, and the slopes of all ordered pairs of the panel.
    from hf_mhe.energy.walks.triton_walk import kernels

    n, d = ops.rows.shape
    columns = _whole_steps(n - panel.row)
    tiles = tiling.slopes
    if ops.rows.is_cuda and ops.rows.dtype == torch.float32:
        tiles = _FLOAT32_TILES if ops.precision == "ieee" else _TF32_TILES
    tiles_m, tiles_n = -(-panel.rows // tiles.m), -(-columns // tiles.n)
    partial = torch.zeros(tiles_m * tiles_n, dtype=torch.float32, device=slopes.device)
    kernels.slopes_kernel[(tiles_m * tiles_n,)](
        ops.rows,
        ops.scale,
        slopes,
        partial,
        counter,
        listed,
        n,
        d,
        panel.row,
        panel.row_end,
        slopes.stride(0),
        columns,
        len(listed),
        1 - 0.5 * max(ops.close_limit, potential.closest**2),
        float(potential.s),
        float(potential.softening) ** 2,
        tiles_m,
        tiles_n,
        S=int(potential.s) if potential.s in (0, 1, 2) else 3,
        DISTANCE=DISTANCES[potential.distance],
        HALF=potential.space == "half",
        TWO_SIDED=potential.two_sided,
        GRADIENT=gradient,
        EVEN_K=d % tiles.k == 0,
        WIDEN=not slopes.is_cuda,
        PRECISION=ops.precision,
        **_schedule(tiles),
    )
    return partial


def _add_product_(out: Tensor, left: Tensor, right: Tensor, tiling: Tiling) -> None:
    # `out += left @ right`; `left` is a panel, or the transposed rest of one, and may be padded on both sides.
    # Note [Half-precision products]
    # `out += left @ right` with a float32 sum of bf16 products: torch has had it (`addmm` with `out_dtype`) since 2.8,
    # on CUDA alone, and accepts a float32 sum to add to only in later versions. Rejected for that, and because what
    # the CPU cannot run the tests do not see. Float32 and tf32 go to the vendor's product.
    (m, n), k = out.shape, _whole_steps(len(right))
    if left.dtype == torch.float32:
        out.addmm_(left[:m, : len(right)], right)
        return
    from hf_mhe.energy.walks.triton_walk import kernels

    tiles = tiling.product
    tiles_m, tiles_n = -(-m // tiles.m), -(-n // tiles.n)
    kernels.add_product_kernel[(tiles_m * tiles_n,)](
        out,
        left,
        right,
        m,
        min(len(left), _whole_steps(m)),
        n,
        k,
        len(right),
        out.stride(0),
        left.stride(0),
        left.stride(1),
        right.stride(0),
        tiles_m,
        tiles_n,
        WIDEN=not out.is_cuda,
        **_schedule(tiles),
    )


def _whole_steps(length: int) -> int:
    return -(-length // _STEP) * _STEP


def _schedule(tiles: Tiles) -> dict[str, Any]:
    return {
        "BM": tiles.m,
        "BN": tiles.n,
        "BK": tiles.k,
        "GROUP": tiles.group,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }

"""MGD: the log-determinant of the kernel matrix of the neurons."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from hf_mhe.checks import check_number, check_option
from hf_mhe.choices import Space
from hf_mhe.energy.family.inputs import directions
from hf_mhe.energy.precision import energy_dtype, without_autocast
from hf_mhe.energy.rows import DeadRows
from hf_mhe.errors import MHEError


@without_autocast
def gram_determinant_penalty(
    weight: Tensor,
    *,
    epsilon: float = 1.0,
    jitter: float = 1e-6,
    space: Space = "full",
    dead: DeadRows = "error",
) -> Tensor:
    """Minus the log-determinant of the neurons' Gaussian kernel matrix (maximum Gram determinant, MGD).

    `-log det(K + jitter I)` with `K_ij = exp(-epsilon^2 |u_i - u_j|^2)` on the directions u. It is 0 where all neurons
    are infinitely far in units of the kernel's width, and grows without bound (up to the jitter) as two coincide.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        epsilon: the inverse width of the kernel, > 0. jitter: added to the diagonal, >= 0; pairs closer than about
            `sqrt(jitter) / epsilon` look alike. The defaults are those of the authors' code.
        space: `"full"`, or `"half"`: the kernel matrix of the 2n neurons and mirror images, through two n x n
            determinants.
        dead: what to do with rows of zeros: `"error"`, or `"skip"` to leave them out.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise; the sum over n, as in the paper, not a mean.
        A Cholesky factorization in float64: `O(n^3)` operations, and several n x n matrices, which a determinant of
        n neurons cannot do without.

    Raises:
        MHEError: bad weight (see `hyperspherical_energy`), option or number, or a kernel matrix that is singular in
            float64 (coincident rows without jitter).

    Source: Liu et al., "Learning with Hyperspherical Uniformity", AISTATS 2021 (arXiv:2103.01649), MGD;
    kernel width and jitter from the authors' code (wy1iu/Sphere-Uniformity).
    """
    check_option("space", space, get_args(Space))
    check_number("epsilon", epsilon)
    check_number("jitter", jitter)
    if epsilon == 0:
        raise MHEError("epsilon must be > 0: at 0 every kernel matrix is singular; got 0")
    unit = directions(weight, dead=dead, exact=True)
    cos = unit @ unit.t()
    kernel = torch.exp(-2 * epsilon**2 * (1 - cos))
    if space == "full":
        return -_log_determinant(kernel, jitter).to(energy_dtype(weight))
    # [[A, B], [B, A]] has the eigenvalues of A + B and of A - B.
    mirrored = torch.exp(-2 * epsilon**2 * (1 + cos))
    total = _log_determinant(kernel + mirrored, jitter) + _log_determinant(kernel - mirrored, jitter)
    return -total.to(energy_dtype(weight))


def _log_determinant(kernel: Tensor, jitter: float) -> Tensor:
    shifted = kernel + jitter * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if int(info) != 0:
        raise MHEError(
            f"the kernel matrix of {len(kernel)} neurons is singular (jitter={jitter:g}): neurons coincide, or "
            "epsilon is too small to tell them apart; pass a larger jitter or epsilon"
        )
    return 2 * factor.diagonal().log().sum()

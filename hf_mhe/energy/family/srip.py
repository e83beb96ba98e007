"""SRIP: the spectral norm of the Gram matrix minus the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.family.inputs import check_count, finite_rows, normal
from hf_mhe.energy.precision import without_autocast


@without_autocast
def srip_penalty(
    weight: Tensor,
    *,
    iterations: int = 2,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Largest `|sigma^2 - 1|` over the singular values of W, by power iteration (spectral restricted isometry).

    With `A = G - I`, G the smaller of `W W^T` and `W^T W`: `v_0` random, `v_k = A v_(k-1) / |A v_(k-1)|`, and the
    value is `|A v_(m-1)|` after m iterations, differentiated through all of them. It is never above the spectral norm
    of A, rises to it with m, and is 0 where the rows (or columns, if they are fewer) are orthonormal.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        iterations: m, products with A, at least 1; the paper takes 2.
        generator, seed: where `v_0` comes from: a generator moves on, a seed gives the same vector at every call; with
            neither, torch's global generator.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise. A is never formed: `4 n d` operations an
        iteration, memory `O(n + d)` beside the weight.

    Raises:
        MHEError: wrong rank, dtype or size, a value that is not finite, a bad count, or both `generator` and `seed`.

    Source: Bansal, Chen, Wang, NeurIPS 2018 (arXiv:1810.09102), section 3, SRIP. Deviations: the smaller Gram matrix
    for every shape, because the larger one minus I has norm 1 at least; the norm itself, as in the paper, where the
    authors' code squares it.
    """
    check_count("iterations", iterations, at_least=1)
    rows = finite_rows(weight)
    short = rows if rows.shape[0] <= rows.shape[1] else rows.t()
    vector = normal((len(short),), rows.detach(), generator, seed)
    vector = vector / torch.linalg.vector_norm(vector)
    image = short @ (short.t() @ vector) - vector
    for _ in range(iterations - 1):
        size = torch.linalg.vector_norm(image)
        if float(size.detach()) == 0:  # W is orthonormal to the last bit: there is no direction to go on with
            break
        vector = image / size
        image = short @ (short.t() @ vector) - vector
    return torch.linalg.vector_norm(image)

"""SO and DSO: how far a weight matrix is from having orthonormal rows, or rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.family.inputs import finite_rows
from hf_mhe.energy.precision import without_autocast

# Note [The smaller Gram matrix]
# W W^T (n x n) and W^T W (d x d) have the same eigenvalues but for |n - d| zeros, and each zero adds 1 to the squared
# norm of the larger one minus I. So |W W^T - I|^2 = |G - I|^2 + max(n - d, 0) with G the smaller of the two. The other
# identity, |W^T W|^2 - 2 |W|^2 + n, is the same number, but as a difference of large ones.


@without_autocast
def soft_orthogonality_penalty(weight: Tensor) -> Tensor:
    """Squared Frobenius distance of `W W^T` from the identity: 0 where the rows are orthonormal (soft orthogonality).

    Unlike the hyperspherical members it also counts the rows' lengths. With n > d rows it is at least n - d.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64. Rows of zeros are rows like others.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise. Cost `2 n d min(n, d)`; memory `min(n, d)^2`.

    Raises:
        MHEError: wrong rank, dtype or size, or a value that is not finite.

    Source: Bansal, Chen, Wang, "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", NeurIPS
    2018 (arXiv:1810.09102), section 3, SO; there neurons are columns and the matrix is `W^T W`.
    """
    rows = finite_rows(weight)
    n, d = rows.shape
    return _smaller_gram_distance(rows) + max(n - d, 0)


@without_autocast
def double_soft_orthogonality_penalty(weight: Tensor) -> Tensor:
    """Soft orthogonality of the rows plus that of the columns: `|W W^T - I|^2 + |W^T W - I|^2`.

    It is at least `|n - d|`, and reaches it where the rows (or the columns, if they are fewer) are orthonormal. With
    the smaller Gram matrix G it is `2 |G - I|^2 + |n - d|`: twice the gradient of the soft orthogonality of the
    shorter side.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise. Cost `2 n d min(n, d)`; memory `min(n, d)^2`.

    Raises:
        MHEError: wrong rank, dtype or size, or a value that is not finite.

    Source: Bansal, Chen, Wang, NeurIPS 2018 (arXiv:1810.09102), section 3, DSO.
    """
    rows = finite_rows(weight)
    n, d = rows.shape
    return 2 * _smaller_gram_distance(rows) + abs(n - d)


def _smaller_gram_distance(rows: Tensor) -> Tensor:
    n, d = rows.shape
    gram = rows @ rows.t() if n <= d else rows.t() @ rows
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()

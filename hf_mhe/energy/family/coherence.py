"""MC: the largest entry of the Gram matrix minus the identity."""

from __future__ import annotations

from torch import Tensor

from hf_mhe.energy.family.inputs import finite_rows
from hf_mhe.energy.family.nearest import largest_deviation
from hf_mhe.energy.precision import without_autocast


@without_autocast
def coherence_penalty(weight: Tensor) -> Tensor:
    """Largest `|<w_i, w_j> - [i = j]|` over all entries: 0 where the rows are orthonormal (mutual coherence, MC).

    On rows of length one it is their mutual coherence, the largest |cosine|.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64. Rows of zeros are rows like others.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise. The entry is searched block by block without a
        gradient (`n^2 d` operations, memory `O(n d)`) and recomputed differentiably: one pair receives a gradient.

    Raises:
        MHEError: wrong rank, dtype or size, or a value that is not finite.

    Source: Bansal, Chen, Wang, NeurIPS 2018 (arXiv:1810.09102), section 3, MC: `|W^T W - I|` in the maximum norm, with
    neurons as columns.
    """
    rows = finite_rows(weight)
    i, j = largest_deviation(rows.detach())
    return ((rows[i] * rows[j]).sum() - float(i == j)).abs()

"""The dense walk: the definition written down, differentiated by autograd; the other walks are tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import without_autocast


@without_autocast
def dense_energy(weight: Tensor, potential: Potential, *, reduction: str = "mean") -> Tensor:
    """The energy of the rows of `weight` from the full matrix of cosines, differentiable any number of times.

    Where two rows are equal, or opposite under the angular distance, the gradient is not defined.
    Holds several n x n matrices and costs `6 n^2 d` operations with its gradient; meant for tests and small matrices.

    Args:
        weight: `(n, d)` or `(B, n, d)`, floating; float16 and bfloat16 are computed in float32.
        potential: the pair function.
        reduction: `"mean"` over ordered pairs, or `"sum"`.

    Returns:
        0-dim, or `(B,)`, tensor in the dtype of the computation.

    Source: Liu et al., NeurIPS 2018, eq. (1).
    """
    rows = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
    unit = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    cos = unit @ unit.transpose(-1, -2)
    n = weight.shape[-2]
    first, second = torch.triu_indices(n, n, offset=1, device=weight.device)
    return potential.mean_of(2 * potential.value(cos[..., first, second]).sum(-1), n, reduction)

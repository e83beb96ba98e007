"""How crowded the rows of a weight are, as the dimension in which random directions would be as crowded."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.energy.observers.excess import Excess
from hf_mhe.energy.precision import product_dtype, without_autocast
from hf_mhe.energy.reference.crowding import dimension_of_excess
from hf_mhe.energy.rows import DeadRows, check_weight, unit_rows
from hf_mhe.energy.walks.blocked import cosines
from hf_mhe.energy.walks.close_pairs import extremes


@torch.no_grad()
@without_autocast
def equivalent_dimension(weight: Tensor, *, dead: DeadRows = "skip") -> float:
    """The dimension in which independent random directions would be as crowded as the rows of `weight`.

    About d for random rows, however many; 1 where all lie on one line; `inf` where all are orthogonal. Rotation and
    the lengths and signs of rows leave it alone; a copy of a row that is as crowded as the others lowers it.

    Example:
        >>> import torch
        >>> from hf_mhe.energy import equivalent_dimension
        >>> rows = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
        >>> round(equivalent_dimension(rows))
        64
        >>> round(equivalent_dimension(rows[:, :8]), 1)
        8.0

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        dead: what to do with rows of zeros, which have no direction: `"skip"`, to leave them out, or `"error"`.

    Raises:
        MHEError: wrong rank or dtype, a value that is not finite, or fewer than two live neurons.

    Source: Note [Equivalent dimension], in `hf_mhe.energy.reference.crowding`.
    """
    check_weight(weight, ranks=(2,))
    rows = unit_rows(weight, product_dtype(weight), dead=dead)
    unit = rows.unit
    excess = Excess(unit, weight if rows.live is None else weight[rows.live])
    for cos, piece in cosines(unit):
        excess.observe(cos, piece, extremes(cos, two_sided=True))
    return dimension_of_excess(excess.mean)

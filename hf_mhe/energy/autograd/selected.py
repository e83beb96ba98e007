"""The energy of some rows of a matrix, or of some pairs, as an operator that autograd and a compiler know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_mhe.energy.autograd.once import gradient_is_second_output
from hf_mhe.energy.autograd.share import share_and_gradient
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype
from hf_mhe.energy.rows import TooFewLiveRowsError
from hf_mhe.energy.walks.exact import compute
from hf_mhe.errors import MHEError


def selected_energy(
    rows: Tensor, potential: Potential, classes: Tensor | None = None, selected: Tensor | None = None
) -> Tensor:
    """The mean energy of the selected rows, over pairs of different classes where there are classes.

    Rows of zeros, or of a negligible length, take no part. Zero, with a gradient of zeros, where no pair is left.

    Args:
        rows: `(n, d)`, any floating dtype, n >= 0.
        potential: the pair function.
        classes: `(n,)` int64; a row is of one class with its mirror image.
        selected: `(n,)` bool.

    Returns:
        0-dim tensor; float64 for float64 rows, float32 otherwise. Differentiable once.

    Raises:
        MHEError: a value of a selected row is not finite.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, eq. (1), some of its pairs.
    """
    gradient = torch.is_grad_enabled() and rows.requires_grad
    return _operator(rows, classes, selected, *potential.plain(), gradient)[0]


@torch.library.custom_op("hf_mhe::selected_energy", mutates_args=())
def _operator(
    rows: Tensor,
    classes: Tensor | None,
    selected: Tensor | None,
    s: float,
    distance: str,
    space: str,
    softening: float,
    closest: float,
    parts: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    potential = Potential(s, distance, space, softening, closest, parts)  # type: ignore[arg-type]
    where = None if selected is None else selected.nonzero().flatten()
    part, kept = (rows, classes) if where is None else (rows[where], None if classes is None else classes[where])
    try:
        energy, found = _energy_and_gradient(part, potential, kept, gradient)
    except MHEError:
        refuse_not_finite(part, where)
        raise
    value = torch.scalar_tensor(energy, dtype=energy_dtype(rows), device=rows.device)
    if gradient and where is not None:
        found = rows.new_zeros(rows.shape).index_copy_(0, where, found)
    return value, found.contiguous()


def _energy_and_gradient(
    rows: Tensor, potential: Potential, classes: Tensor | None, gradient: bool
) -> tuple[float, Tensor]:
    if len(rows) > 1:
        if classes is not None:
            return share_and_gradient(rows, rows, 0, potential, classes, gradient=gradient)
        try:
            energy, found = compute(rows, potential, reduction="mean", dead="skip_negligible", gradient=gradient)
            return float(energy), found
        except TooFewLiveRowsError:
            pass
    return 0.0, rows.new_zeros(rows.shape if gradient else 0)


@_operator.register_fake
def _(rows: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *_, gradient = options
    return rows.new_empty((), dtype=energy_dtype(rows)), rows.new_empty(rows.shape if gradient else 0)


gradient_is_second_output(_operator)


def refuse_not_finite(rows: Tensor, where: Tensor | None = None, what: str = "embeddings") -> None:
    """Refuse rows `(n, d)` that are not finite, by their places in a larger matrix, `(n,)`, if given.

    Raises:
        MHEError: a value is not finite.
    """
    broken = (~torch.isfinite(rows).all(dim=1)).nonzero().flatten()
    if len(broken):
        row = rows[broken[0]]
        value = float(row[~torch.isfinite(row)][0])
        place = int(broken[0] if where is None else where[broken[0]])
        raise MHEError(f"{what} must be finite; row {place} has {value} ({len(broken)} of {len(rows)} rows do)")

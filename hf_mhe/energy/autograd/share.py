"""The share of an energy, and the gradient, that one of several owners of a weight's rows needs.

Where the rows of a weight are divided between processes, each walks its own rows against all. The shares of the value
add up to the energy, and the gradient of the own rows is complete: nothing has to be sent back to their owners.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype, product_dtype, without_autocast
from hf_mhe.energy.rows import TooFewLiveRowsError, UnitRows, check_weight, pull_back_, unit_rows
from hf_mhe.energy.walks.rows_against_all import own_rows_against_all, own_rows_against_other_classes
from hf_mhe.errors import MHEError


def energy_share(own: Tensor, everyone: Tensor, start: int, potential: Potential) -> Tensor:
    """The share of the mean energy of `everyone`'s rows that the rows `own` account for: `i` own, `j` any other row.

    The shares of disjoint own rows that cover `everyone` sum to the energy. The gradient is not that of the share but
    of the whole energy, with respect to the own rows: a sum of shares whose gradient is handed on unchanged has the
    gradient of the energy. Rows of zeros, or of a negligible length, are left out of both.

    Args:
        own: `(m, d)`, m >= 0, the rows `[start, start + m)` of `everyone`; the gradient goes here.
        everyone: `(n, d)`, same dtype and device; no gradient goes here.
        start: the index of the first own row.
        potential: the pair function.

    Returns:
        0-dim tensor; float64 for a float64 weight, float32 otherwise. Zero where fewer than two rows are live.

    Raises:
        MHEError: a value is not finite, the own rows do not lie in `everyone`, or as `hyperspherical_energy`.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, eq. (1), its sum over i split.
    """
    check_weight(everyone)
    if own.dim() != 2 or own.shape[1] != everyone.shape[1] or not 0 <= start <= len(everyone) - len(own):
        raise MHEError(
            f"own rows of shape {tuple(own.shape)} from row {start} on must lie within all rows, of shape "
            f"{tuple(everyone.shape)}"
        )
    share: Tensor = _Share.apply(own, everyone.detach(), start, potential)
    return share


class _Share(torch.autograd.Function):
    """The forward pass leaves the gradient ready; the backward pass is one scaling."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, everyone: Tensor, start: int, potential: Potential) -> Tensor:
        share, gradient = share_and_gradient(own, everyone, start, potential, gradient=ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return torch.tensor(share, dtype=energy_dtype(own), device=own.device)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None


@without_autocast
def share_and_gradient(
    own: Tensor, everyone: Tensor, start: int, potential: Potential, classes: Tensor | None = None, *, gradient: bool
) -> tuple[float, Tensor]:
    """What `energy_share` returns, and its gradient in the dtype of `own`, which is empty unless `gradient`.

    With `classes`, `(n,)` int64, it is the mean over the pairs of different classes alone, and zero where there is no
    such pair; a row is of one class with its mirror image.
    """
    grad = torch.zeros_like(own) if gradient else own.new_empty(0)
    try:
        rows = unit_rows(everyone, product_dtype(everyone), dead="skip_negligible")
    except TooFewLiveRowsError:  # a layer that starts at zero (LoRA's B) has no pair of directions yet
        return 0.0, grad
    source, first, last = everyone, start, start + len(own)
    if rows.live is not None:
        source = everyone[rows.live]
        first, last = int((rows.live < first).sum()), int((rows.live < last).sum())
        classes = None if classes is None else classes[rows.live]
    n = len(rows.unit)
    if classes is None:
        pairs = own_rows_against_all(rows.unit, source, first, last, potential, gradient=gradient)
        # A constant term of the energy, that of the mirror images, belongs to all rows alike.
        constant = float(potential.mean_of(0.0, n))
        share = potential.mean_of(pairs.value, n) - constant + (last - first) / n * constant
        scale = potential.scale_of(n, "mean")
    else:
        scale = _scale_between(classes, potential)
        if not scale:
            return 0.0, grad
        pairs = own_rows_against_other_classes(rows.unit, source, first, last, classes, potential, gradient=gradient)
        share = pairs.value * scale
    if pairs.gradient is not None:
        own_rows = UnitRows(rows.unit[first:last], rows.norm[first:last], None)
        found = pull_back_(pairs.gradient, own_rows, scale)
        if rows.live is None:
            grad.copy_(found)
        else:
            grad[rows.live[first:last] - start] = found.to(grad.dtype)
    return share, grad


def _scale_between(classes: Tensor, potential: Potential) -> float:
    """What the sum over ordered pairs of different classes is multiplied by for their mean; 0 where there are none."""
    counts = torch.unique(classes, return_counts=True)[1]
    pairs = len(classes) ** 2 - int((counts**2).sum())
    if not pairs:
        return 0.0
    # In half space two neurons are four pairs of points, whose energies are `2 F` together.
    return 0.5 / pairs if potential.space == "half" else 1.0 / pairs

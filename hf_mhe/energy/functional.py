"""The functional face of the energy."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from hf_mhe.checks import check_option
from hf_mhe.choices import Distance, Space
from hf_mhe.energy.autograd.transforms import exact_energy
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.rows import DeadRows, check_weight, unit_rows
from hf_mhe.energy.walks.definition import dense_energy


def hyperspherical_energy(
    weight: Tensor,
    s: float = 2.0,
    *,
    distance: Distance = "euclidean",
    space: Space = "full",
    reduction: Literal["mean", "sum"] = "mean",
    softening: float = 0.0,
    walk: Literal["blocked", "dense"] = "blocked",
    dead: DeadRows = "error",
) -> Tensor:
    """Hyperspherical energy of the rows of a weight matrix: low where their directions spread evenly over the sphere.

    Example:
        >>> import torch
        >>> from hf_mhe import hyperspherical_energy
        >>> hyperspherical_energy(torch.eye(3))  # three orthogonal neurons: every squared distance is 2
        tensor(0.5000)
        >>> hyperspherical_energy(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), s=1)  # two opposite ones, at distance 2
        tensor(0.5000)

    Args:
        weight: `(n, d)`, one neuron a row, or `(B, n, d)` for B matrices at once; float16, bfloat16, float32 or
            float64.
        s: exponent of the Riesz kernel `rho^(-s)`, any number >= 0; 0 is the logarithmic kernel `log(1 / rho)`.
        distance: `"euclidean"` (chord) or `"angular"` (arc, in radians).
        space: `"full"`, or `"half"` to count every neuron together with its mirror image.
        reduction: `"mean"` over ordered pairs (the paper's normalised energy), or `"sum"`.
        softening: Plummer softening: the squared distance becomes `rho^2 + softening^2`.
        walk: `"blocked"` (exact, `3 n^2 d` operations with the gradient, `O(n d)` memory) or `"dense"` (the
            definition, differentiable twice, `O(n^2)` memory).
        dead: what to do with rows of zeros, which have no direction: `"error"`, or `"skip"` to leave them out of n;
            `"skip_negligible"`, which training takes, leaves out rows shorter than 2^-12 of the longest one too.

    Returns:
        0-dim tensor, or `(B,)`; float64 for a float64 weight, float32 otherwise. Differentiable with respect to
        `weight`. Two equal rows have infinite energy (finite with `softening`), and no gradient on each other.

    Raises:
        MHEError: wrong rank, dtype or option, fewer than two rows, a value that is not finite, or a row of zeros.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, eq. (1)-(3), section 3.3.
    """
    potential = Potential(s, distance, space, softening)
    return energy_of(weight, potential, reduction=reduction, walk=walk, dead=dead)


def energy_of(
    weight: Tensor, potential: Potential, *, reduction: str = "mean", walk: str = "blocked", dead: DeadRows = "error"
) -> Tensor:
    """`hyperspherical_energy` of a potential."""
    check_option("reduction", reduction, ("mean", "sum"))
    check_option("walk", walk, ("blocked", "dense"))
    check_option("dead", dead, get_args(DeadRows))
    check_weight(weight)
    if walk == "dense":
        return _dense(weight, potential, reduction, dead)
    return exact_energy(weight, potential, reduction=reduction, dead=dead)


def _dense(weight: Tensor, potential: Potential, reduction: str, dead: DeadRows) -> Tensor:
    if weight.dim() == 3:
        return torch.stack([_dense(matrix, potential, reduction, dead) for matrix in weight])
    live = unit_rows(weight.detach(), torch.float64, dead=dead).live
    return dense_energy(weight if live is None else weight[live], potential, reduction=reduction)

"""CoMHE with random projections."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mhe.choices import Distance, Space
from hf_mhe.energy.family.comhe import draw_projections
from hf_mhe.energy.family.inputs import check_count, directions
from hf_mhe.energy.functional import energy_of
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import without_autocast
from hf_mhe.energy.rows import DeadRows


@without_autocast
def random_projection_energy(
    weight: Tensor,
    s: float = 2.0,
    *,
    dim: int = 40,
    projections: int = 20,
    distance: Distance = "euclidean",
    space: Space = "full",
    softening: float = 0.0,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    dead: DeadRows = "error",
) -> Tensor:
    """Mean hyperspherical energy of the neurons after random projections to `dim` dimensions, averaged over several.

    `(1/C) sum_c E_s(P_c w_1 / |P_c w_1|, ..., P_c w_n / |P_c w_n|)`, with the entries of `P_c` independent and normal.
    A different objective from the energy of the neurons themselves, and no estimator of it: directions in fewer
    dimensions lie closer together.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        s, distance, space, softening: the potential, as in `hyperspherical_energy`. The authors train hidden layers
            in half space.
        dim: k, from 2 to d. projections: C, at least 1. The defaults, 40 and 20, are those of the authors' training
            log.
        generator, seed: where the projections come from: a generator moves on, so each call draws anew; a seed gives
            the same ones at every call (and on every rank); with neither, torch's global generator.
        dead: what to do with rows of zeros: `"error"`, or `"skip"` to leave them out.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise; differentiable through the projected rows.

    Raises:
        MHEError: bad weight (see `hyperspherical_energy`), option or count, or both `generator` and `seed`.

    Source: Lin et al., "Regularizing Neural Networks via Minimizing Hyperspherical Energy", CVPR 2020
    (arXiv:1906.04892), section 4, random-projection CoMHE; constants from the authors' code (rmlin/CoMHE).
    """
    potential = Potential(s, distance, space, softening)
    return random_projection_energy_of(
        weight, potential, dim=dim, projections=projections, generator=generator, seed=seed, dead=dead
    )


@without_autocast
def random_projection_energy_of(
    weight: Tensor,
    potential: Potential,
    *,
    dim: int = 40,
    projections: int = 20,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    dead: DeadRows = "error",
) -> Tensor:
    """`random_projection_energy` of a potential."""
    check_count("projections", projections, at_least=1)
    unit = directions(weight, dead=dead)
    matrices = draw_projections(projections, dim, unit, generator, seed)
    projected = torch.einsum("nd,ckd->cnk", unit, matrices)
    return energy_of(projected, potential).mean()

"""CoMHE with a projection that is moved to raise the energy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_mhe.checks import check_number
from hf_mhe.choices import Distance, Space
from hf_mhe.energy.family.comhe import ascend, given_or_drawn
from hf_mhe.energy.family.inputs import check_count, directions
from hf_mhe.energy.functional import energy_of
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype, without_autocast
from hf_mhe.energy.rows import DeadRows

# Note [One step, not a maximum]
# A projection to k < d dimensions can lay two neurons on top of each other, so the inner maximum over P is infinite
# without softening, and a full ascent ends at one pair whose gradient says nothing of the others. The authors take
# small steps from a projection that lives with the model; the default here is one small step from a random one.

# As in the exact walk: below the first squared chord `2 - 2c` has lost digits in float64, and the difference of the
# two rows has not; below the second, two rows are the same but for rounding, and have no direction to part in.
_SQUARED_CHORD_LIMIT = 1e-6
_SAME = 1e-30


@without_autocast
def adversarial_projection_energy(
    weight: Tensor,
    s: float = 2.0,
    *,
    dim: int = 30,
    projection: Tensor | None = None,
    steps: int = 1,
    step_size: float = 0.001,
    unroll: bool = True,
    distance: Distance = "euclidean",
    space: Space = "full",
    softening: float = 0.0,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    dead: DeadRows = "error",
) -> Tensor:
    """Mean hyperspherical energy after a projection that was moved to make it large (`min_W max_P`).

    `E_s(P* w_i / |P* w_i|)` with `P*` the result of `steps` of gradient ascent
    `P <- P + step_size * dE_s/dP`. A different objective from the energy of the neurons themselves, and no estimator
    of it.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        s, distance, space, softening: the potential, as in `hyperspherical_energy`, of the ascent and of the value.
        dim: k, from 2 to d, for a projection that is drawn.
        projection: `(k, d)` to start from, taken as a constant; None draws one with entries `N(0, 1/(k d))`. The
            authors keep one for the life of the model and move it at every optimizer step: `adversarial_projection`
            does that.
        steps: at least 0. step_size: for a projection of Frobenius norm about one.
        unroll: differentiate through the ascent, as the authors do: the gradient is that of the value returned; holds
            several n x n matrices a step, of float64. With False, `P*` counts as a constant in the gradient, which
            is exact where `P*` is a maximum (Danskin's theorem); memory `O(n d)`.
        generator, seed: where a projection is drawn from, as in `random_projection_energy`.
        dead: what to do with rows of zeros: `"error"`, or `"skip"` to leave them out.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise. Two equal rows have infinite energy (finite with
        `softening`), and no gradient on each other.

    Raises:
        MHEError: bad weight, projection, option, count or number, or an energy too steep to follow.

    Source: Lin et al., CVPR 2020 (arXiv:1906.04892), section 4, adversarial CoMHE, with the unrolled step of the
    authors' code (rmlin/CoMHE). Deviation: there the ascent is in full space while the value is in half space; here
    both follow `space`.
    """
    potential = Potential(s, distance, space, softening)
    return adversarial_projection_energy_of(
        weight,
        potential,
        dim=dim,
        projection=projection,
        steps=steps,
        step_size=step_size,
        unroll=unroll,
        generator=generator,
        seed=seed,
        dead=dead,
    )


@without_autocast
def adversarial_projection_energy_of(
    weight: Tensor,
    potential: Potential,
    *,
    dim: int = 30,
    projection: Tensor | None = None,
    steps: int = 1,
    step_size: float = 0.001,
    unroll: bool = True,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    dead: DeadRows = "error",
) -> Tensor:
    """`adversarial_projection_energy` of a potential."""
    check_count("steps", steps, at_least=0)
    check_number("step_size", step_size)
    unit = directions(weight, dead=dead, exact=True)
    start = given_or_drawn(projection, dim, unit, generator, seed)
    keep_graph = unroll and unit.requires_grad
    best = _raise_energy(unit, start, potential, steps=steps, step_size=step_size, keep_graph=keep_graph)
    projected = (unit @ best.t()).to(energy_dtype(weight))
    return energy_of(projected, potential)


@torch.no_grad()
@without_autocast
def adversarial_projection(
    weight: Tensor,
    projection: Tensor | None = None,
    s: float = 2.0,
    *,
    dim: int = 30,
    steps: int = 10,
    step_size: float = 0.001,
    distance: Distance = "euclidean",
    space: Space = "full",
    softening: float = 0.0,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    dead: DeadRows = "error",
) -> Tensor:
    """Move a `(k, d)` projection towards a higher energy of the projected neurons; no gradient reaches the weight.

    Arguments as in `adversarial_projection_energy`, whose `projection` the result is meant for: keep it, and move it
    on between optimizer steps. Costs `3 n^2 k` operations a step, memory `O(n d)`.

    Returns:
        `(k, d)`, float64 (float32 on MPS), on the weight's device.

    Raises:
        MHEError: bad weight, projection, option, count or number, or an energy too steep to follow.

    Source: Lin et al., CVPR 2020 (arXiv:1906.04892), section 4: the inner problem of adversarial CoMHE.
    """
    check_count("steps", steps, at_least=0)
    check_number("step_size", step_size)
    potential = Potential(s, distance, space, softening)
    unit = directions(weight, dead=dead, exact=True)
    start = given_or_drawn(projection, dim, unit, generator, seed)
    return _raise_energy(unit, start, potential, steps=steps, step_size=step_size, keep_graph=False)


def _raise_energy(
    unit: Tensor, start: Tensor, potential: Potential, *, steps: int, step_size: float, keep_graph: bool
) -> Tensor:
    def energy(projection: Tensor) -> Tensor:
        projected = unit @ projection.t()
        if keep_graph:  # the exact walk has no second derivative, which the unrolled step needs
            return _twice_differentiable_energy(projected, potential)
        return energy_of(projected, potential)

    return ascend(start, energy, steps=steps, step_size=step_size, keep_graph=keep_graph)


def _twice_differentiable_energy(projected: Tensor, potential: Potential) -> Tensor:
    # The definition, over the upper triangle, on squared chords; up to a constant where rows coincide.
    unit = normalize(projected, dim=1, eps=0.0)
    n = len(unit)
    first, second = torch.triu_indices(n, n, offset=1, device=unit.device)
    cos = (unit @ unit.t())[first, second]
    near, far = 2 - 2 * cos, 2 + 2 * cos
    for_near = (near < _SQUARED_CHORD_LIMIT).nonzero().flatten()
    near = near.index_put((for_near,), (unit[first[for_near]] - unit[second[for_near]]).square().sum(1))
    apart = near > _SAME
    if potential.two_sided:
        for_far = (far < _SQUARED_CHORD_LIMIT).nonzero().flatten()
        far = far.index_put((for_far,), (unit[first[for_far]] + unit[second[for_far]]).square().sum(1))
        apart &= far > _SAME
    value, _ = potential.from_chords(near[apart], far[apart])
    return potential.mean_of(2 * value.sum(), n)

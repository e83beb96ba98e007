"""CoMHE with a projection that is moved to preserve the angles between neurons."""

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


@without_autocast
def angle_preserving_projection_energy(
    weight: Tensor,
    s: float = 2.0,
    *,
    dim: int = 30,
    projection: Tensor | None = None,
    steps: int = 1,
    step_size: float = 0.01,
    unroll: bool = True,
    distance: Distance = "euclidean",
    space: Space = "full",
    softening: float = 0.0,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    dead: DeadRows = "error",
) -> Tensor:
    """Mean hyperspherical energy after a projection that was moved to preserve the angles between the neurons.

    `E_s(P* w_i / |P* w_i|)` with `P*` the result of `steps` of gradient descent `P <- P - step_size * dD/dP` on the
    distortion `D(P) = (1/n^2) sum_ij (cos(P w_i, P w_j) - cos(w_i, w_j))^2`. A different objective from the energy of
    the neurons themselves, and no estimator of it.

    Args:
        weight: `(n, d)`, one neuron a row; float16, bfloat16, float32 or float64.
        s, distance, space, softening: the potential, as in `hyperspherical_energy`.
        dim: k, from 2 to d, for a projection that is drawn.
        projection: `(k, d)` to start from, taken as a constant; None draws one with entries `N(0, 1/(k d))`. The
            authors keep one for the life of the model and move it at every optimizer step:
            `angle_preserving_projection` does that.
        steps: at least 0. step_size: for a projection of Frobenius norm about one.
        unroll: differentiate through the steps, as the authors do: the gradient is that of the value returned. With
            False, `P*` counts as a constant in the gradient.
        generator, seed: where a projection is drawn from, as in `random_projection_energy`.
        dead: what to do with rows of zeros: `"error"`, or `"skip"` to leave them out.

    Returns:
        0-dim tensor, float64 for a float64 weight, float32 otherwise.

    Raises:
        MHEError: bad weight, projection, option, count or number.

    Source: Lin et al., CVPR 2020 (arXiv:1906.04892), section 4, angle-preserving CoMHE: a bilevel problem, solved by
    unrolled gradient steps. Deviations: the paper compares angles, the authors' code (rmlin/CoMHE) cosines, in the
    unsquared Frobenius norm; here squares of the paper and cosines of the code, because the derivative of arccos, and
    of the norm at zero, is not finite; divided by n^2, so that a step size means the same for every layer.
    """
    potential = Potential(s, distance, space, softening)
    return angle_preserving_projection_energy_of(
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
def angle_preserving_projection_energy_of(
    weight: Tensor,
    potential: Potential,
    *,
    dim: int = 30,
    projection: Tensor | None = None,
    steps: int = 1,
    step_size: float = 0.01,
    unroll: bool = True,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    dead: DeadRows = "error",
) -> Tensor:
    """`angle_preserving_projection_energy` of a potential."""
    check_count("steps", steps, at_least=0)
    check_number("step_size", step_size)
    unit = directions(weight, dead=dead, exact=True)
    start = given_or_drawn(projection, dim, unit, generator, seed)
    keep_graph = unroll and unit.requires_grad
    best = ascend(start, lambda p: -_distortion(unit, p), steps=steps, step_size=step_size, keep_graph=keep_graph)
    projected = (unit @ best.t()).to(energy_dtype(weight))
    return energy_of(projected, potential)


@torch.no_grad()
@without_autocast
def angle_preserving_projection(
    weight: Tensor,
    projection: Tensor | None = None,
    *,
    dim: int = 30,
    steps: int = 10,
    step_size: float = 0.01,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    dead: DeadRows = "error",
) -> Tensor:
    """Move a `(k, d)` projection towards preserving the angles between the neurons; no gradient reaches the weight.

    Arguments as in `angle_preserving_projection_energy`, whose `projection` the result is meant for: keep it, and
    move it on between optimizer steps. Costs `O(n k d)` a step, memory `O(n d)`.

    Returns:
        `(k, d)`, float64 (float32 on MPS), on the weight's device.

    Raises:
        MHEError: bad weight, projection, count or number.

    Source: Lin et al., CVPR 2020 (arXiv:1906.04892), section 4: the inner problem of angle-preserving CoMHE.
    """
    check_count("steps", steps, at_least=0)
    check_number("step_size", step_size)
    unit = directions(weight, dead=dead, exact=True)
    start = given_or_drawn(projection, dim, unit, generator, seed)
    return ascend(start, lambda p: -_distortion(unit, p), steps=steps, step_size=step_size, keep_graph=False)


def _distortion(unit: Tensor, projection: Tensor) -> Tensor:
    # Note [Distortion without n x n]
    # With A the projected unit rows and B the unit rows, |A A^T - B B^T|^2 = |A^T A|^2 - 2 |A^T B|^2 + |B B^T|^2 in
    # Frobenius norms: k x k and k x d numbers in place of n x n. The last term does not depend on P and is left out.
    projected = normalize(unit @ projection.t(), dim=1, eps=0.0)
    distortion = (projected.t() @ projected).square().sum() - 2 * (projected.t() @ unit).square().sum()
    return distortion / len(unit) ** 2

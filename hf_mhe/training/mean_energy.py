"""The mean energy of matrices of neurons as the penalty counts it: dead neurons take no part (`energy/rows.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_mhe.energy import Potential
from hf_mhe.energy.estimators.sampled import sampled_energy_of
from hf_mhe.energy.functional import energy_of
from hf_mhe.energy.rows import DeadRows, TooFewLiveRowsError
from hf_mhe.energy.walks.exact import matrices_at_a_time
from hf_mhe.training.objectives.objective import Sample

_DEAD: DeadRows = "skip_negligible"


def mean_energy(matrix: Tensor, potential: Potential, sample: Sample | None = None) -> Tensor:
    """The mean energy of the live rows of `(n, d)`, differentiable: a 0-dim tensor; 0 where fewer than two are live.

    Exact, or with a sample an unbiased estimate.

    Raises:
        MHEError: as `hyperspherical_energy`.
    """
    try:
        if sample is not None:
            generator = torch.Generator().manual_seed(sample.seed)
            return sampled_energy_of(matrix, potential, rows=sample.rows, dead=_DEAD, generator=generator)
        return energy_of(matrix, potential, dead=_DEAD)
    except TooFewLiveRowsError:  # a layer that starts at zero (LoRA's B, a zero-initialised residual)
        return matrix.new_zeros((), dtype=torch.promote_types(matrix.dtype, torch.float32))


# Elements of matrices that are put together for one call: their copy is kept until the backward pass.
_TOGETHER = 1 << 22


def alike(matrices: Sequence[Tensor], potentials: Sequence[Potential | None]) -> list[list[int]]:
    """Batches of indices, at least two in each, whose matrices take less time in one call than one by one.

    Those without a potential are in none.
    """
    calls: list[list[int]] = []
    latest: dict[tuple[object, ...], list[int]] = {}
    for index, (matrix, potential) in enumerate(zip(matrices, potentials, strict=True)):
        if potential is None or matrices_at_a_time(matrix) == 1:
            continue
        key = (matrix.shape, matrix.dtype, matrix.device, potential)
        if key not in latest or (len(latest[key]) + 1) * matrix.numel() > _TOGETHER:
            latest[key] = []
            calls.append(latest[key])
        latest[key].append(index)
    return [call for call in calls if len(call) > 1]


def mean_energies(matrices: Sequence[Tensor], potential: Potential) -> Sequence[Tensor]:
    """The mean energies of the live rows of matrices of one shape, each 0-dim, in one call.

    Raises:
        MHEError: as `hyperspherical_energy`.
    """
    return energy_of(torch.stack(list(matrices)), potential, dead=_DEAD).unbind()


def with_range(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it has half precision: a gradient of it is scaled before it is rounded.

    The gradient of a mean over many pairs is so small that float16 would lose it, which the factor of a loss scaler,
    coming later, could not bring back.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

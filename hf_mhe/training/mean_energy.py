"""The mean energy of one matrix of neurons as the penalty counts it: dead neurons take no part."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy import Potential, hyperspherical_energy, sampled_energy
from hf_mhe.errors import MHEError


class Sample(NamedTuple):
    """A random sample of so many rows, drawn with a seed."""

    rows: int
    seed: int


def mean_energy(matrix: Tensor, potential: Potential, sample: Sample | None = None) -> Tensor:
    """The mean energy of the live rows of `(n, d)`, differentiable: a 0-dim tensor; 0 for a matrix of zeros.

    Exact, or with a sample an unbiased estimate.

    Raises:
        MHEError: as `hyperspherical_energy`.
    """
    try:
        if sample is not None:
            return sampled_energy(
                matrix,
                potential.s,
                rows=sample.rows,
                distance=potential.distance,
                space=potential.space,
                softening=potential.softening,
                dead="skip",
                generator=torch.Generator().manual_seed(sample.seed),
            )
        return hyperspherical_energy(
            matrix,
            potential.s,
            distance=potential.distance,
            space=potential.space,
            softening=potential.softening,
            dead="skip",
        )
    except MHEError:
        # A layer that starts at zero (LoRA's B, a zero-initialised residual) has no pair of directions yet.
        if int(matrix.detach().any(dim=1).sum()) < 2:
            return matrix.new_zeros((), dtype=torch.promote_types(matrix.dtype, torch.float32))
        raise


def with_range(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it has half precision: a gradient of it is scaled before it is rounded.

    The gradient of a mean over many pairs is so small that float16 would lose it, which the factor of a loss scaler,
    coming later, could not bring back.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

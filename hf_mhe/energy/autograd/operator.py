"""The exact walk as a `torch.library` operator, so that autograd, `torch.compile` and `torch.export` know it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_mhe.energy.autograd.once import gradient_is_second_output
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.precision import energy_dtype
from hf_mhe.energy.walks.exact import compute


@torch.library.custom_op("hf_mhe::exact_energy", mutates_args=())
def operator(
    weight: Tensor,
    s: float,
    distance: str,
    space: str,
    softening: float,
    closest: float,
    parts: bool,
    reduction: str,
    dead: str,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """`exact.compute`, with a potential in the plain types that a schema has: `Potential.plain`."""
    potential = Potential(s, distance, space, softening, closest, parts)  # type: ignore[arg-type]
    energy, found = compute(weight, potential, reduction=reduction, dead=dead, gradient=gradient)  # type: ignore[arg-type]
    return energy, found.contiguous()  # however the weight lies and whichever walk it was: the fake kernel has to know


@operator.register_fake
def _(weight: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *_, gradient = options
    energy = weight.new_empty(weight.shape[:-2], dtype=energy_dtype(weight))
    empty = (0,) if weight.dim() == 2 else (weight.shape[0], 0)
    return energy, weight.new_empty(weight.shape if gradient else empty)


gradient_is_second_output(operator)

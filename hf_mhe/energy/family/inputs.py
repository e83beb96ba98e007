"""What every member takes in: rows, directions, counts, a source of random numbers."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from hf_mhe.checks import check_integer, check_option
from hf_mhe.energy.precision import energy_dtype
from hf_mhe.energy.rows import DeadRows, check_weight, unit_rows
from hf_mhe.errors import MHEError


def finite_rows(weight: Tensor) -> Tensor:
    """The `(n, d)` weight as it is, lengths included, in the dtype of its energy; differentiable.

    Raises:
        MHEError: wrong rank, dtype or size, or a value that is not finite.
    """
    check_weight(weight, ranks=(2,))
    finite = torch.isfinite(weight.detach())
    if not bool(finite.all()):
        row, column = (int(x) for x in (~finite).nonzero()[0])
        raise MHEError(f"weight has a value that is not finite ({float(weight.detach()[row, column])} in row {row})")
    return weight.to(energy_dtype(weight))


def directions(weight: Tensor, *, dead: DeadRows = "error", exact: bool = False) -> Tensor:
    """The live rows of a `(n, d)` weight, scaled to length one in the dtype of its energy; differentiable.

    With `exact` in the widest type of the device: float64, but float32 on MPS, which has no other.

    Raises:
        MHEError: wrong rank, dtype or size, a value that is not finite, a row of zeros while `dead` is `"error"`, or
            fewer than two live rows.
    """
    check_weight(weight, ranks=(2,))
    check_option("dead", dead, get_args(DeadRows))
    dtype = torch.float64 if exact and weight.device.type != "mps" else energy_dtype(weight)
    live = unit_rows(weight.detach(), dtype, dead=dead).live
    rows = (weight if live is None else weight[live]).to(dtype)
    # The largest element is a constant here: a length that is divided out again has no derivative.
    scaled = rows / rows.detach().abs().amax(dim=1, keepdim=True)
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True)


def check_count(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """The value as an int; refuse what is not a whole number within the limits."""
    limits = f">= {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    return check_integer(name, value, at_least=at_least, at_most=at_most, right=f"a whole number {limits}")


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None, seed: int | None) -> Tensor:
    """Standard normal numbers of `shape`, in the dtype and on the device of `like`.

    Drawn in float32 on the generator's device, or on the CPU: a seed gives the same numbers for every weight dtype and
    on every device.

    Raises:
        MHEError: both `generator` and `seed` were given, or one of the wrong type.
    """
    if generator is not None and seed is not None:
        raise MHEError("give generator or seed, not both")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise MHEError(f"generator must be a torch.Generator; got {type(generator).__name__}")
    if seed is not None:
        generator = torch.Generator().manual_seed(check_count("seed", seed, at_least=0))
    device = "cpu" if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device).to(like)

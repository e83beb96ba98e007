"""The check that energies are finite, where `torch.compile` traces: an operator, for a graph cannot look at values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_mhe.errors import MHEError
from hf_mhe.training.messages import not_finite


@torch.library.custom_op("hf_mhe::finite", mutates_args=())
def finite(energies: Tensor, groups: str, noun: str, cure: str) -> Tensor:
    """The energies `(groups,)` as they are, differentiable; `groups` are their names, one a line.

    Raises:
        MHEError: one is not finite; names the group.
    """
    if not torch.isfinite(energies).all():
        raise MHEError(not_finite(groups.split("\n"), energies.tolist(), noun, cure))
    return energies.clone()  # an operator may not return its input


@finite.register_fake
def _(energies: Tensor, groups: str, noun: str, cure: str) -> Tensor:
    return torch.empty_like(energies)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
    return upstream, None, None, None


finite.register_autograd(_backward)

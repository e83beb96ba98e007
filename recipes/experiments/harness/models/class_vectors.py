"""Class vectors that are not trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mhe import minimize_energy


@torch.no_grad()
def fix(model: PreTrainedModel, kind: Any, seed: int) -> None:
    """Replace the rows of `model.classifier` by vectors of length one, and leave them there.

    Args:
        kind: False: leave the model alone; True: the least energy; "random"; or "orthonormal".

    Raises:
        ValueError: there is no such kind, or there are more classes than orthonormal vectors.
    """
    if kind is False:
        return
    weight = model.classifier.weight
    weight.copy_(vectors(kind, *weight.shape, seed))
    weight.requires_grad_(False)


def vectors(kind: Any, classes: int, dim: int, seed: int) -> Tensor:
    """Class vectors of length one, `(classes, dim)`; as `fix` has them."""
    if kind is True:
        return minimize_energy(classes, dim, s=2.0, seed=seed)
    drawn = torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed))
    if kind == "random":
        return nn.functional.normalize(drawn, dim=1)
    if kind != "orthonormal" or classes > dim:
        raise ValueError(f"no fixed vectors {kind!r} of {classes} classes in {dim} dimensions")
    return torch.linalg.qr(drawn.t()).Q.t()

"""Masks among the tensors of a file: -inf where nothing may look, in a model that is sound.

Note [A mask by its values]
Where no class is known, nothing says which tensor of a file is a buffer. A tensor with -inf is taken for a mask only
by what a weight never looks like: its other values are all one, or the -inf fill exactly one triangle (biases of
attention beside a causal mask), under a name that is neither weight nor bias. Rejected: to allow -inf in whatever is
not called weight, since that lets a broken scale or embedding through.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WEIGHTS = ("weight", "bias")
MASK = "a mask, by its -inf beside one other value or in a triangle: no weights"


def is_mask(name: str, tensor: Tensor) -> bool:
    """Whether a stored tensor is a mask with -inf. See Note [A mask by its values]."""
    if name.rpartition(".")[2] in _WEIGHTS or not tensor.is_floating_point() or tensor.numel() == 0:
        return False
    values = tensor.float()
    barred = torch.isneginf(values)
    seen = values[~barred]
    if not barred.any() or seen.numel() == 0 or not torch.isfinite(seen).all():
        return False
    if bool((seen == seen[0]).all()):
        return True
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2]:
        return False
    triangle = torch.ones_like(barred).triu(1)
    return torch.equal(barred, triangle) or torch.equal(barred, triangle.mT)

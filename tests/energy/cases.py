"""Rows that several tests of the energy share."""

from __future__ import annotations

import torch
from torch import Tensor


def random_rows(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Independent random directions; the same numbers for one shape and seed, in every dtype."""
    generator = torch.Generator().manual_seed(1000 * n + d + seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)

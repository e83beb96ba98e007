"""Memory that a thread keeps from one walk to the next."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

# Note [Workspace]
# On a CPU fresh memory is mapped page by page as it is first written: for one walk over 3072 x 768 that is up to a
# tenth of its time. So each thread keeps what the walk needs within itself, as matrix libraries do; beyond the limit
# the products outweigh the pages, and keeping the memory would be felt. Other devices have allocators that keep
# memory themselves.
_MOST_BYTES = 1 << 25

_kept = threading.local()


def scratch(name: str, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A flat tensor with room for `elements`, contents undefined, valid until this thread asks for the name again."""
    if device.type != "cpu" or elements * dtype.itemsize > _MOST_BYTES:
        return torch.empty(elements, dtype=dtype, device=device)
    key = f"{name} {dtype}"
    kept: Tensor | None = getattr(_kept, key, None)
    if kept is None or kept.numel() < elements:
        # An inference tensor could not be written to outside of inference mode.
        with torch.inference_mode(False):
            kept = torch.empty(elements, dtype=dtype, device=device)
        setattr(_kept, key, kept)
    return kept[:elements]

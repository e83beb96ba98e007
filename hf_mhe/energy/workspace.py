"""Memory that a thread keeps from one computation to the next."""

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


# Note [Turns]
# What one core writes and both have just read has to leave the other core's cache first. Where the two share no cache,
# to write the unit rows of 768 x 768 over those that a product had read took 490 us, and 100 us beside them. So two
# memories take turns: the one that is written is the one that has been out of use for longer. Where the cores share a
# cache it makes no difference. Rejected: the same for blocks of cosines, which gain more from the cache that they are
# still in; more than two memories, which are no better.
def scratch_in_turn(name: str, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same, of two memories the one that was not given out last."""
    turn = not getattr(_kept, name, False)
    setattr(_kept, name, turn)
    return scratch(f"{name} {turn:d}", elements, dtype, device)

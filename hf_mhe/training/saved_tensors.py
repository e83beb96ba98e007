"""What autograd saves for the penalty's backward pass, where a training offloads or recomputes what is saved.

Note [Hooks on saved tensors]
Offloading of activations (`save_on_cpu`, TRL's `activation_offloading`, `offload_wrapper`) and checkpointing put hooks
on all that autograd saves within their context, and TRL's is around the whole step. What the penalty saves are the
weights, or values made of them: they are in memory anyway, and its gradient is ready after the forward pass. Through
the hooks every weight would be copied to the host and back at each step, and within a checkpoint every pair be walked
a second time. So the hooks of others do not see it. Rejected: hooks of our own where there are no others, for
autograd then no longer notices that a saved weight was changed in place.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def kept_in_place() -> AbstractContextManager[object]:
    """A context in which what autograd saves stays where it is; see Note [Hooks on saved tensors]."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    autograd: Any = torch._C._autograd  # which says more than its stub; torch before 2.8 does not say it at all
    top = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    if top is None or not autograd._saved_tensors_hooks_is_enabled() or top(True) is None:
        return contextlib.nullcontext()
    return saved_tensors_hooks(_as_it_is, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor

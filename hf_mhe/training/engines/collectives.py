"""What is asked of all ranks together."""

from __future__ import annotations

import torch

from hf_mhe.errors import MHEError


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def error_of_any(own: MHEError | None, process_group: torch.distributed.ProcessGroup | None) -> MHEError | None:
    """This rank's error, or else that of the first rank of the group that has one; every rank has to call this.

    So what one rank refuses, all ranks refuse, with the reason of the one.
    """
    said: list[str | None] = [None] * torch.distributed.get_world_size(process_group)
    torch.distributed.all_gather_object(said, None if own is None else str(own), group=process_group)
    first = next((each for each in said if each is not None), None)
    return own if own is not None or first is None else MHEError(first)


def as_first_decides(decision: bool, device: torch.device) -> bool:
    """What the first rank decided, so that all do the same; every rank has to call this, in one process none waits.

    Args:
        decision: this rank's, of which the first rank's counts.
        device: where the backend communicates.
    """
    if not is_distributed():
        return decision
    said = torch.tensor(decision, dtype=torch.int32, device=device)
    torch.distributed.broadcast(said, src=0)
    return bool(said)

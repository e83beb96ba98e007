"""How well scores tell two kinds apart: what verification and the detection of strange inputs are judged by."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(higher: Tensor, lower: Tensor) -> float:
    """Probability, in percent, that one of `higher` (n,) is above one of `lower` (m,); equal ones count half.

    Raises:
        ValueError: one of them is empty.
    """
    if not len(higher) or not len(lower):
        raise ValueError(f"both kinds must have scores; got {len(higher)} and {len(lower)}")
    ordered = lower.sort().values
    below = torch.searchsorted(ordered, higher)
    to = torch.searchsorted(ordered, higher, right=True)
    return 100 * float((below + to).double().mean()) / (2 * len(lower))


def accepted(genuine: Tensor, impostor: Tensor, share: float) -> float:
    """Percent of `genuine` scores above a threshold that at most `share` of the `impostor` scores are above.

    The true acceptance rate (TAR) at a false acceptance rate (FAR).

    Raises:
        ValueError: `share` of the impostors is less than one of them.
    """
    allowed = int(share * len(impostor))
    if not allowed:
        raise ValueError(f"a share of {share:g} of {len(impostor)} impostors is less than one")
    threshold = impostor.topk(allowed + 1).values[-1]
    return 100 * float((genuine > threshold).double().mean())

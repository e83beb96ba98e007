"""Which way neurons go that coincide: a push on each, where the energy has none to give.

Note [Copies]
Where two rows coincide a bounded energy has no gradient, by symmetry, and what has no gradient stays: rows of a
vocabulary resized to one mean, replicated heads, widened layers, rows of a classifier whose classes have not come up
yet. Their task's gradients are often the same too. So a potential with `parts` pushes such a pair apart, as hard as
two neurons at a right angle push each other, along a direction that depends on nothing but how many rows lie between
the two: the same in every run and on every rank, engine and device. The push is added to the gradient, and is no part
of the energy. Rows count as copies up to a chord of 1e-3, of which products in float32 see nothing, so that weights in
bfloat16, whose last place is coarser than the first steps apart, part too.

Rejected: noise on the weights when a model is bound, which changes a model that may never be trained, writes to
shards, quantized bases and products of adapters, and comes too early for rows that become copies later, as those of a
head that starts at zero. A push as hard as the bounded potential pushes at most, 126 times this one for s = 2: a
widened MLP parts hardly sooner, and short rows, as of a head after its first step, are thrown far from where the task
has them (digits, SGD 0.1, a head that starts at zero, 110 steps, seeds 0 to 2: task loss 1.67, with this push 1.05,
without MHE 1.64).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hf_mhe.energy.potential import RIGHT_ANGLE, Potential

SAME_BELOW = 1e-6  # squared chord
_DIRECTIONS = 64


def push_copies_apart_(
    grad: Tensor, first: Tensor, second: Tensor, steps: Tensor, opposite: Tensor, potential: Potential
) -> None:
    """Add the push to the gradient on unit rows `(n, d)` of the sum over ordered pairs.

    Args:
        grad: `(n, d)`, added to in place.
        first, second: int64, the rows of pairs that coincide.
        steps: int64, how many rows further down the layer the second one lies, negative if it lies above.
        opposite: bool, where the second one coincides with the mirror image of the first.
        potential: bounded where rows coincide.
    """
    table = _directions(grad.shape[1]).to(grad.device)
    # Whole numbers add up to the same in any order.
    times = torch.zeros(len(grad) * _DIRECTIONS, dtype=torch.float64, device=grad.device)
    which = steps.abs() % _DIRECTIONS
    onward = torch.where(steps > 0, 1.0, -1.0).to(times.dtype)
    times.index_add_(0, second * _DIRECTIONS + which, torch.where(opposite, 1.0, onward))
    times.index_add_(0, first * _DIRECTIONS + which, torch.where(opposite, 1.0, -onward))
    grad.add_((times.view(len(grad), _DIRECTIONS) @ table).to(grad.dtype), alpha=_push(potential))


@functools.lru_cache(maxsize=64)
def _push(potential: Potential) -> float:
    return 2 * potential.slope_at(RIGHT_ANGLE)  # both orders of the pair


@functools.lru_cache(maxsize=16)
def _directions(d: int) -> Tensor:
    """`(64, d)` float64, unit rows, always the same."""
    generator = torch.Generator("cpu").manual_seed(0)
    rows = torch.randn(_DIRECTIONS, d, generator=generator, dtype=torch.float64, device="cpu")
    return torch.nn.functional.normalize(rows, dim=1)

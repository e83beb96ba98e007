"""Why a parameter is no neuron group: the reasons that live modules and checkpoints share.

Note [Seen and not seen]. Most of what is skipped was looked at and has no neurons: a bias, one vector, a table of
positions' numbers. A weight of an unknown format, or a tensor that the known model does not take, may have some. The
two are kept apart where the reason is given, by its type, so that a report can say how much of a model it has not
seen. Rejected: to distinguish them by the text, which a new reason would slip through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class Unseen(str):
    """A reason why a weight was not looked at, though it may have neurons. See Note [Seen and not seen].

    `elements` is the number of its values, None where it is not known. Names that share one weight share the object.
    """

    elements: int | None

    def __new__(cls, reason: str, elements: int | None = None) -> Unseen:
        made = super().__new__(cls, reason)
        made.elements = elements
        return made

    @classmethod
    def of_shape(cls, reason: str, shape: Sequence[int]) -> Unseen:
        """The reason for a weight of a shape."""
        return cls(reason, math.prod(shape))


LAZY = Unseen("uninitialized lazy parameter: its shape is not known before a first forward")


def size_refusal(n: int, d: int) -> str | None:
    """Why n neurons in d dimensions are no group, or None where they are one."""
    if n < 2:
        return "one neuron only: energy needs at least two"
    if d < 2:
        return "one coordinate only: directions in one dimension are nothing but signs"
    return None


def dtype_refusal(dtype: str) -> str:
    """Why values of a dtype that is no real floating point have no directions by themselves."""
    if dtype.lower().startswith(("complex", "c64", "c128")):
        return f"complex values ({dtype}): the energy is of directions in real space, which they have none of"
    return f"stored as {dtype}: a quantized weight has no directions without its scales"

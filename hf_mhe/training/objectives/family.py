"""A member of the family as the objective: one number of the whole matrix."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_mhe.energy import Potential
from hf_mhe.energy.rows import TooFewLiveRowsError
from hf_mhe.errors import MHEError
from hf_mhe.training.objectives.family_members import MEMBERS
from hf_mhe.training.objectives.objective import Sample


@dataclass(frozen=True)
class FamilyObjective:
    """See `Objective`.

    Args:
        name: in `MEMBERS`.
        potential: of the group's role; what the member has no use for in it is not looked at.
        options: of the member, all of them, as pairs.
        draw: names what is drawn, for a member that draws.
    """

    name: str
    potential: Potential
    options: tuple[tuple[str, float | int | bool], ...] = ()
    draw: str = ""

    @property
    def by_rows(self) -> Potential | None:
        """See `Objective`."""
        return None

    @property
    def noun(self) -> str:
        """See `Objective`."""
        return self.name

    @property
    def cure(self) -> str:
        """See `Objective`."""
        return "its neurons coincide, or its weights have grown beyond what their dtype holds: lower the learning rate"

    @torch.compiler.disable  # the search for a pair, or a step of an iteration, depends on values
    def value(self, matrix: Tensor) -> Tensor:
        """See `Objective`."""
        # A string is hashed by SHA-512, alike in every process and version of Python.
        seed = random.Random(self.draw).getrandbits(63) if MEMBERS[self.name].draws else 0
        try:
            return MEMBERS[self.name].value(matrix, self.potential, dict(self.options), seed)
        except TooFewLiveRowsError:  # a layer that starts at zero (LoRA's B, a zero-initialised residual)
            return matrix.new_zeros((), dtype=torch.promote_types(matrix.dtype, torch.float32))

    def operations(self, n: int, d: int) -> int:
        """See `Objective`."""
        return MEMBERS[self.name].operations(n, d, self.potential.space, dict(self.options))

    def sampled(self, sample: Sample) -> FamilyObjective:
        """See `Objective`; there is none.

        Raises:
            MHEError: in any case.
        """
        raise MHEError(f"{self.name} cannot be estimated from a sample of {sample.rows} neurons")

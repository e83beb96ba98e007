"""The mean energy of a potential as the objective, exact or estimated from a sample of the neurons."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from hf_mhe.energy import Potential
from hf_mhe.training.engines.plan import operations
from hf_mhe.training.mean_energy import mean_energy
from hf_mhe.training.objectives.objective import Sample


@dataclass(frozen=True)
class Energy:
    """See `Objective`; with a `sample` the mean energy is estimated from it."""

    potential: Potential
    sample: Sample | None = None

    @property
    def by_rows(self) -> Potential | None:
        """See `Objective`."""
        return self.potential if self.sample is None else None

    @property
    def noun(self) -> str:
        """See `Objective`."""
        return "energy"

    @property
    def cure(self) -> str:
        """See `Objective`."""
        softening = "auto" if self.potential.closest else str(self.potential.softening)
        return (
            "two of its neurons coincide; leave softening at its default, which bounds what such a pair counts "
            f"(it is {softening})"
        )

    def value(self, matrix: Tensor) -> Tensor:
        """See `Objective`."""
        return mean_energy(matrix, self.potential, self.sample)

    def operations(self, n: int, d: int) -> int:
        """See `Objective`."""
        return operations(n, d, None if self.sample is None else self.sample.rows)

    def sampled(self, sample: Sample) -> Energy:
        """See `Objective`."""
        return replace(self, sample=sample)

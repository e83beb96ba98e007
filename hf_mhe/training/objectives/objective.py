"""What an engine needs to know of the number that the penalty adds up for a group."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from hf_mhe.energy import Potential


class Sample(NamedTuple):
    """A random sample of `rows` neurons, drawn with a seed."""

    rows: int
    seed: int


class Objective(Protocol):
    """A number of one group's neurons, lower where they are more diverse."""

    @property
    def by_rows(self) -> Potential | None:
        """The potential, where this is the exact mean energy of one: ranks may then each walk some of the rows.

        None where the number needs the whole matrix, which one rank then has.
        """

    @property
    def noun(self) -> str:
        """What it is called in a message."""

    @property
    def cure(self) -> str:
        """Why it may not be finite, and what can be done about that."""

    def value(self, matrix: Tensor) -> Tensor:
        """Of the live rows of `(n, d)`: a 0-dim tensor, differentiable; 0 where it needs more rows than are live.

        Raises:
            MHEError: a value is not finite, or the rows have no such number.
        """

    def operations(self, n: int, d: int) -> int:
        """Floating-point operations of the value with its gradient."""

    def sampled(self, sample: Sample) -> Objective:
        """An unbiased estimate of it from some of the neurons; only of one that has `by_rows`."""

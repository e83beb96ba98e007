"""What one optimizer step of the penalty needs to know of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.accumulation import Moment
from hf_mhe.training.engines.plan import Workload
from hf_mhe.training.terms import AcrossTerm, PenaltyTerms, Term


class Stepper(Protocol):
    """What takes the optimizer steps, where the loop does not."""

    global_steps: int
    """How many it has taken."""


class Engine(Protocol):
    """Who holds which part of a model's parameters, at the current step."""

    @property
    def stepper(self) -> Stepper | None:
        """What takes and counts the optimizer steps; None where the loop does, with an optimizer of torch."""

    @property
    def fills_grad(self) -> bool:
        """Whether `.grad` has the gradients that the optimizer gets, so that the ratio of two can be taken there."""

    @property
    def divides_members(self) -> bool:
        """Whether the ranks divide the coordinates of a stack's members, or each walks all of them."""

    def micro_batch(self, *, sync: bool | None = None, scale: float | None = None) -> Moment:
        """The current micro-batch: is the penalty due, and what is the loss divided by.

        Args:
            sync: whether an optimizer step follows, where the loop says it.
            scale: what the loss is divided by, where the loop says it.

        Raises:
            MHEError: the loop has to say it, or something in use is not supported.
        """

    def workload(self, groups: Sequence[NeuronGroup]) -> Workload:
        """What the walks over groups cost, and how many ranks divide them: what a budget has to know."""

    def evaluate(self, terms: Sequence[Term]) -> PenaltyTerms:
        """The terms, one or more, undivided: every rank has the whole penalty and all energies.

        Every rank that holds a part of the parameters has to call this, with the same terms in the same order.

        Raises:
            MHEError: an energy is not finite, a parameter is on the meta device or sharded in a way that is not
                supported, or it changed its shape.
        """

    def evaluate_due(self, terms: Sequence[Term]) -> PenaltyTerms:
        """The same for the loss of the micro-batch that is due: what this rank adds, so that all together add once.

        Raises:
            MHEError: as `evaluate`; under DDP that comes out of the backward pass, on every rank.
        """

    def evaluate_across(self, terms: Sequence[AcrossTerm], *, due: bool) -> PenaltyTerms:
        """The penalty and the energies of stacks of members, one or more terms, in their order; `groups` is empty.

        On every rank alike: each has the gradient of the whole penalty for the parameters that it holds, whose mean
        over ranks that hold the same is itself. Every rank that holds a part of the parameters has to call this.

        Args:
            terms: the same in the same order on every rank.
            due: whether it is for the loss of the micro-batch that is due.

        Raises:
            MHEError: an energy is not finite, or the engine cannot put the members side by side.
        """

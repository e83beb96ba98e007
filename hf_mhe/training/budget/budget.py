"""The budget of a training: what a step of it costs, and which terms of the penalty each step draws.

Note [What is counted]
Floating-point operations, of the penalty (`allotment`) and of the training step (`operations`) alike: they are known
before anything is computed, are the same on every rank and at every resumption, and do not depend on what else the
machine does. Rejected: timing the steps, which would make the training irreproducible.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence

import torch
from torch import nn

from hf_mhe.checks import check_integer, check_number
from hf_mhe.errors import MHEError
from hf_mhe.training.budget.allotment import allot, describe
from hf_mhe.training.budget.operations import ForwardOperations
from hf_mhe.training.engines.collectives import is_distributed
from hf_mhe.training.engines.plan import GroupShape, Workload
from hf_mhe.training.objectives.objective import Sample
from hf_mhe.training.terms import AcrossTerm, Term

_OPERATIONS = "a finite number of operations > 0"


class Budget:
    """A share of the training step's operations, and the draws that keep the penalty within it.

    Args:
        share: in (0, 1].
        model: whose training step it is.
        step_operations: floating-point operations of one optimizer step on this process: forward and backward passes
            of all its micro-batches, the same number on every rank. By default the forward passes of the first step
            are counted, and the ranks take their mean.
        seed: of the draws.

    Attributes:
        step_operations: as given, counted or loaded; None until the first step's passes are done.

    Raises:
        MHEError: `step_operations` is not a finite number > 0, or the seed is not an integer >= 0.
    """

    def __init__(self, share: float, model: nn.Module, *, step_operations: float | None, seed: int) -> None:
        if step_operations is not None:
            check_number("step_operations", step_operations, above=0, right=_OPERATIONS)
        check_integer("seed", seed, at_least=0)
        self.share, self.step_operations, self._seed = share, step_operations, seed
        self._model, self._given = model, step_operations
        self._announced = False
        self._supposed = 0.0
        self._forward = self._start() if step_operations is None else None

    def suppose(self, operations: float) -> None:
        """Add a micro-batch's operations, known otherwise, to what is taken where no forward pass can be counted."""
        if self.step_operations is None:
            self._supposed += operations

    def load(self, step_operations: float | None) -> None:
        """Go on with a step that was counted before; with None count anew, unless it was given.

        Raises:
            MHEError: not a finite number > 0.
        """
        if step_operations is not None:
            check_number("step_operations", step_operations, above=0, right=_OPERATIONS)
        self._stop()
        self.step_operations = self._given if step_operations is None else float(step_operations)
        if self.step_operations is None:
            self._supposed, self._forward = 0.0, self._start()

    def end_step(self) -> None:
        """The forward passes of a step are done: the first step whose passes were seen is counted.

        Every rank has to call this, before the step's `draw`, and also at a step without one.
        """
        if self.step_operations is not None or torch.compiler.is_compiling():
            return
        counted = (self._stop() or self._supposed) if self._forward is not None else 0.0
        if is_distributed():
            device = next(self._model.parameters()).device
            total = torch.tensor(counted, dtype=torch.float64, device=device)
            torch.distributed.all_reduce(total)
            counted = float(total) / torch.distributed.get_world_size()
        self.step_operations = counted or None

    def draw(self, terms: Sequence[Term | AcrossTerm], workload: Workload, step: int) -> list[Term | AcrossTerm]:
        """The terms to compute at an optimizer step, in their order; every rank has to call this.

        Args:
            terms: of the exact penalty.
            workload: what the walks over their groups cost, in the same order.
            step: its number.

        Returns:
            Some of the terms, some of them with a sample, whose factors make up for those that are left out.

        Raises:
            MHEError: no forward pass of the model was seen, or this is inside a compiled graph.
        """
        if torch.compiler.is_compiling():
            raise MHEError(
                "budget draws other groups at each step, which a compiled graph cannot do: call the regularizer "
                "outside of torch.compile"
            )
        if self.step_operations is None:
            raise MHEError(
                f"budget={self.share:g} is a share of the training step's operations, and no forward pass of "
                f"{type(self._model).__name__} could be counted before the first penalty (it was compiled, or its "
                "layers were called one by one): give them, MHERegularizer(..., step_operations=6 * parameters * "
                "tokens of a step on one process)"
            )
        factors = tuple(term.factor for term in terms)
        workload = workload._replace(groups=tuple(map(_as_computed, workload.groups, terms)))
        allotment = allot(workload, factors, self.share * self.step_operations)
        if not self._announced:
            self._announced = True
            if not is_distributed() or torch.distributed.get_rank() == 0:
                print(describe(allotment, self.share, self.step_operations), file=sys.stderr)
        return [
            _drawn(terms[index], times, allotment.sample(index, step, self._seed))
            for index, times in allotment.draw(step, self._seed).items()
        ]

    def _start(self) -> ForwardOperations:
        forward = ForwardOperations(self._model)
        weakref.finalize(self, forward.remove).atexit = False  # a budget that was never drawn from leaves nothing
        return forward

    def _stop(self) -> float:
        forward, self._forward = self._forward, None
        return 0.0 if forward is None else forward.stop()


def _as_computed(shape: GroupShape, term: Term | AcrossTerm) -> GroupShape:
    """The shape with what its term costs, where that is not the walk of the energy."""
    if isinstance(term, AcrossTerm) or term.objective.by_rows is not None:
        return shape
    return shape._replace(whole=term.operations, together=False, rows=None)


def _drawn(term: Term | AcrossTerm, times: float, sample: Sample | None) -> Term | AcrossTerm:
    if isinstance(term, AcrossTerm):  # of which all members are walked, whenever it is drawn
        return term._replace(factor=times * term.factor)
    objective = term.objective if sample is None else term.objective.sampled(sample)
    return term._replace(factor=times * term.factor, objective=objective)

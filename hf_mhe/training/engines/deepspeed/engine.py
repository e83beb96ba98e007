"""DeepSpeed ZeRO 0 to 3: its engine takes the steps and divides the loss, and its ranks walk every group together.

Note [Who divides by the accumulation]
`engine.backward` divides the loss, and with it the penalty. A plain `loss.backward()`, which the engine also takes,
is divided where it reaches the output of the model, and so without what was added to the loss afterwards. Which of the
two it was is known in the backward pass only: there the penalty's gradient is divided, or has been.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.accumulation import Moment, accelerate_says
from hf_mhe.training.engines.deepspeed.deferred import give_zeros
from hf_mhe.training.engines.deepspeed.zero import divided_energies, partitioned_over
from hf_mhe.training.engines.one_process import OneProcess, check_finite, weighted
from hf_mhe.training.engines.plan import Workload
from hf_mhe.training.engines.protocol import Stepper
from hf_mhe.training.terms import AcrossTerm, PenaltyTerms, Term, trained


class DeepSpeed:
    """Each rank holds whole parameters (ZeRO 0 to 2) or a part of each (ZeRO 3), and the engine averages gradients.

    Args:
        engine: DeepSpeed's own; None where only the parameters show that ZeRO 3 has them: before
            `deepspeed.initialize`, or in a part of the engine's model.
        model: the module that was given to `deepspeed.initialize`.
        groups: all that the penalty may be computed on.
        divide_work: whether ranks that hold whole parameters divide the walk.
        unpartitioned: the engine of parameters that ZeRO 3 has not partitioned, where no ranks divide the walk.
    """

    def __init__(
        self,
        engine: Any | None,
        model: nn.Module,
        groups: Sequence[NeuronGroup],
        *,
        divide_work: bool,
        unpartitioned: OneProcess,
    ) -> None:
        self._engine, self._model, self._groups = engine, model, groups
        self._divide_work, self._unpartitioned = divide_work, unpartitioned

    divides_members = False

    @property
    def stepper(self) -> Stepper | None:
        """See `Engine`."""
        return self._engine

    @property
    def fills_grad(self) -> bool:
        """See `Engine`: ZeRO keeps gradients in buffers of its own."""
        return self._engine is None

    def micro_batch(self, *, sync: bool | None = None, scale: float | None = None) -> Moment:
        """See `Engine`; the engine knows when it steps, unless accelerate drives it and knows better."""
        if self._engine is None:
            return self._unpartitioned.micro_batch(sync=sync, scale=scale)
        said = accelerate_says()
        if sync is None:
            sync = said.is_due if said.distributed_type == "DEEPSPEED" else _is_last_micro_batch(self._engine)
        if scale is not None:
            return Moment(sync, scale)
        return Moment(sync, float(self._engine.gradient_accumulation_steps()), partial(_divided_once, self._engine))

    def workload(self, groups: Sequence[NeuronGroup]) -> Workload:
        """See `Engine`."""
        process_group = self._dividing(groups)
        alone = self._unpartitioned.workload(groups)
        ranks = alone.ranks if process_group is None else torch.distributed.get_world_size(process_group)
        return Workload(tuple(shape._replace(together=True) for shape in alone.groups), ranks)

    def evaluate(self, terms: Sequence[Term]) -> PenaltyTerms:
        """See `Engine`; under ZeRO 3 the ranks divide the walk in any case."""
        return self._evaluate(terms, partitioned_over([term.group for term in terms]))

    def evaluate_due(self, terms: Sequence[Term]) -> PenaltyTerms:
        """See `Engine`."""
        if self._engine is not None:
            _prepare(self._engine, self._model, trained(self._groups))
        return self._evaluate(terms, self._dividing([term.group for term in terms]))

    def evaluate_across(self, terms: Sequence[AcrossTerm], *, due: bool) -> PenaltyTerms:
        """See `Engine`; every rank computes all of it, and the engine's mean over the ranks leaves it as it is.

        Raises:
            MHEError: ZeRO 3 has partitioned the parameters.
        """
        stacks = [term.stack for term in terms]
        for stack in stacks:
            if partitioned_over(stack.groups) is not None:
                raise MHEError(
                    f"MHE does not support across={stack.kind!r} with DeepSpeed ZeRO 3, which has partitioned the "
                    f"parameters of {stack.name!r}: train with ZeRO 0 to 2, FSDP2, DDP or in one process, or leave "
                    "across out"
                )
        if due and self._engine is not None:
            _prepare(self._engine, self._model, trained(self._groups))
        return self._unpartitioned.evaluate_across(terms, due=due)

    def _evaluate(self, terms: Sequence[Term], process_group: torch.distributed.ProcessGroup | None) -> PenaltyTerms:
        if process_group is None:
            return self._unpartitioned.evaluate(terms)
        with torch.autocast(terms[0].group.tensors()[0].device.type, enabled=False):
            energies = torch.stack(divided_energies(self._model, terms, process_group))
        check_finite(terms, energies.detach())
        return PenaltyTerms(weighted(terms, energies), energies.detach(), [term.group for term in terms])

    def _dividing(self, groups: Sequence[NeuronGroup]) -> torch.distributed.ProcessGroup | None:
        """The ranks that divide the walk over groups in a training step; None where each walks everything."""
        process_group = partitioned_over(groups)
        if process_group is None and self._engine is not None and self._divide_work:
            process_group = _averaging(self._engine)
        return process_group


def _divided_once(engine: Any, penalty: Tensor) -> Tensor:
    """The penalty, whose gradient is divided by the accumulation steps unless `engine.backward` divides the loss."""

    def divide(gradient: Tensor) -> Tensor:
        if engine._running_engine_backward:
            return gradient
        return gradient / engine.gradient_accumulation_steps()

    followed = penalty.clone()  # whose hook is its own
    followed.register_hook(divide)
    return followed


def _averaging(engine: Any) -> torch.distributed.ProcessGroup | None:
    """The ranks whose gradients the engine averages; None where it leaves that to its optimizer (1-bit Adam)."""
    return engine.data_parallel_group if engine.enable_backward_allreduce else None


def _is_last_micro_batch(engine: Any) -> bool:
    """Whether an optimizer step of the engine follows the current micro-batch.

    Raises:
        MHEError: the engine leaves that to the loop, or it is in one of its contexts that are not supported.
    """
    if engine.inside_no_sync_ctxt:  # where it counts no micro-batches, and may not step
        if getattr(engine.optimizer, "_coalesce_grad_reduction", False):
            raise _not_in_this_context()
        return False
    if not engine.managed_gradient_accumulation():
        raise MHEError(
            "DeepSpeed's managed_gradient_accumulation is off, so the engine does not know which micro-batch is the "
            "last before engine.step(): say it, regularizer(loss, sync=...)"
        )
    return bool(engine.is_gradient_accumulation_boundary())


def _prepare(engine: Any, model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Make the engine ready for a penalty on these parameters of its model in the last, current micro-batch.

    Raises:
        MHEError: the engine does not reduce gradients in this backward pass.
    """
    if engine.inside_no_sync_ctxt:
        raise _not_in_this_context()
    # The engine sets this in its optimizer when its model's output gets a gradient. The penalty's nodes were made
    # later and run before that: the gradient of a parameter that the loss does not reach would be kept for later.
    set_boundary = getattr(engine.optimizer, "set_gradient_accumulation_boundary", None)
    if set_boundary is not None and engine.managed_gradient_accumulation():
        set_boundary(True)
    if engine.zero_optimization_stage() < 3 and engine.zero_cpu_offload():
        give_zeros(model, parameters)  # under ZeRO 3 it is found out which ones the task does not reach


def _not_in_this_context() -> MHEError:
    return MHEError(
        "MHE does not support the last micro-batch of an accumulation within DeepSpeed's no_sync or "
        "coalesce_grad_reduction: leave that one out of the context, or let the engine accumulate "
        "(gradient_accumulation_steps)"
    )

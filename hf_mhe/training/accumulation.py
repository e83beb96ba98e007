"""When a penalty is due within an accumulation of gradients, and by what the loss is divided afterwards.

Note [Where 1/accumulation comes from]
A loop divides its loss itself before the regularizer sees it, or leaves that to `accelerator.backward` or to
DeepSpeed's `engine.backward`. These two divide the penalty too, which was added to the loss, so it is multiplied by
their divisor first (`Moment.add`). `by_loop` finds the divisor for every engine that leaves the steps to the loop;
DeepSpeed counts and divides by itself: `hf_mhe/training/engines/deepspeed/engine.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from hf_mhe.training.engines.refuse import refuse_distributed_type, refuse_parallelism


@dataclass(frozen=True)
class Moment:
    """One micro-batch, seen from the optimizer step.

    Attributes:
        is_due: whether the penalty is, because an optimizer step follows this micro-batch.
        divisor: what the backward call divides the loss by; a term that must count once at full weight is multiplied
            by it.
        in_backward: where only the backward pass shows whether the loss is divided: makes the penalty's gradient
            right there.
    """

    is_due: bool
    divisor: float
    in_backward: Callable[[Tensor], Tensor] | None = None

    def add(self, loss: Tensor, penalty: Tensor) -> Tensor:
        """The loss, 0-dim, with the penalty, which counts once at full weight whatever the loss is divided by."""
        if self.in_backward is not None and penalty.requires_grad:
            penalty = self.in_backward(penalty)
        return loss + self.divisor * penalty.to(loss.device)


class Accelerate(NamedTuple):
    """What accelerate says of the current micro-batch; as it is here where no `Accelerator` is in use.

    `divisor` is what `accelerator.backward` divides by, `distributed_type` accelerate's name of the engine.
    """

    is_due: bool = True
    divisor: float = 1.0
    distributed_type: str = ""


def accelerate_says() -> Accelerate:
    """What accelerate says of the current micro-batch.

    `accelerator.backward` divides by the accumulation steps of the plugin, also in a last, incomplete accumulation
    (accelerate 1.15, `Accelerator.backward` and `_do_sync`): the divisor is the same in every micro-batch.

    Raises:
        MHEError: accelerate runs an engine that is not supported.
    """
    state = sys.modules.get("accelerate.state")  # not imported: nothing can have been prepared by it
    if state is None or not state.is_initialized():
        return Accelerate()
    shared, gradients = state.AcceleratorState(), state.GradientState()
    distributed_type = str(shared.distributed_type.value)
    refuse_distributed_type(distributed_type, is_fsdp2=shared.is_fsdp2)
    refuse_parallelism(getattr(shared, "parallelism_config", None))
    return Accelerate(bool(gradients.sync_gradients), float(gradients.num_steps), distributed_type)


def by_loop(*, sync: bool | None, scale: float | None) -> Moment:
    """The current micro-batch, where a loop takes the steps: what the loop says of it, or else accelerate.

    Args:
        sync: whether an optimizer step follows, where the loop says it.
        scale: the divisor, where the loop says it.

    Raises:
        MHEError: accelerate runs an engine that is not supported.
    """
    said = accelerate_says()
    return Moment(said.is_due if sync is None else sync, said.divisor if scale is None else scale)

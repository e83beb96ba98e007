"""When a penalty is due within an accumulation of gradients, and by what the loss is divided afterwards."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from hf_mhe.training.engines import is_last_micro_batch, refuse_distributed_type


@dataclass(frozen=True)
class Moment:
    """One micro-batch, seen from the optimizer step.

    Attributes:
        sync: whether this micro-batch synchronizes gradients, that is, an optimizer step follows it.
        divisor: what the backward call divides the loss by; a term that must count once at full weight is multiplied
            by it.
    """

    sync: bool
    divisor: float


def find_moment(engine: Any | None, *, sync: bool | None = None, scale: float | None = None) -> Moment:
    """The micro-batch in hand: what the loop says of it, or else the DeepSpeed engine, or else accelerate.

    `accelerator.backward` divides by the accumulation steps of the plugin, also in a last, incomplete accumulation
    (accelerate 1.15, `Accelerator.backward` and `_do_sync`): the divisor is the same in every micro-batch. So it is in
    `engine.backward`, which divides in its place; when the engine steps is accelerate's to say where that drives it.

    Args:
        engine: as `find_engine` has it.
        sync: as `Moment`, where the loop says it.
        scale: the divisor, where the loop says it.

    Raises:
        MHEError: accelerate runs an engine that is not supported, or the DeepSpeed engine does not know when it steps.
    """
    by_accelerate, divisor, drives = True, 1.0, False
    state = sys.modules.get("accelerate.state")  # not imported: nothing can have been prepared by it
    if state is not None and state.is_initialized():
        shared = state.AcceleratorState()
        kind = str(shared.distributed_type.value)
        refuse_distributed_type(kind, is_fsdp2=shared.is_fsdp2)
        gradients = state.GradientState()
        by_accelerate, divisor = bool(gradients.sync_gradients), float(gradients.num_steps)
        drives = kind == "DEEPSPEED"
    if engine is not None:
        divisor = float(engine.gradient_accumulation_steps())
    if sync is None:
        sync = by_accelerate if engine is None or drives else is_last_micro_batch(engine)
    return Moment(sync, divisor if scale is None else scale)

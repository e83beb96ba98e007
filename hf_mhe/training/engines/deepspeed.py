"""DeepSpeed: the engine around a model, found, refused where it does what is not served, and asked what it does.

Note [How the engine is found]
A regularizer that was bound before `deepspeed.initialize` knows the inner module only, and how often the engine
accumulates and when it steps is the engine's to say. The engine leaves hooks of its own on the module, closures over
itself. Rejected: asking the user for the engine; a loop that forgets it would train with a wrong lambda in silence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.wrappers import unwrap
from hf_mhe.training.engines.deferred import give_zeros

_ENGINE = "DeepSpeedEngine"  # a name, not the class: DeepSpeed is optional
_SPECIAL_ENGINES = {
    "PipelineEngine": "DeepSpeed's pipeline parallel (PipelineEngine)",
    "DeepSpeedHybridEngine": "DeepSpeed's hybrid engine",
}


def find_engine(model: nn.Module) -> Any | None:
    """The DeepSpeed engine that a model is, or that trains it; None where there is none, or inside a compiled graph.

    Raises:
        MHEError: the engine does something that is not served.
    """
    if "deepspeed" not in sys.modules or torch.compiler.is_compiling():
        return None
    # A module that was initialized again has the hooks of both engines: the last one trains it.
    engine = next((each for module in (model, unwrap(model)) for each in reversed([*_engines(module)])), None)
    if engine is not None:
        _refuse_engine(engine)
    return engine


def _engines(module: nn.Module) -> Iterator[Any]:
    if _is_engine(module):
        yield module
    for hook in module._forward_pre_hooks.values():
        for cell in getattr(hook, "__closure__", None) or ():
            if _is_engine(cell.cell_contents):
                yield cell.cell_contents


def _is_engine(value: object) -> bool:
    return any(kind.__name__ == _ENGINE for kind in type(value).__mro__)


def _refuse_engine(engine: Any) -> None:
    kinds = {kind.__name__ for kind in type(engine).__mro__}
    for name, what in _SPECIAL_ENGINES.items():
        if name in kinds:
            raise MHEError(f"MHE does not serve {what}: train with deepspeed.initialize's plain engine, ZeRO 0 to 3")
    optimizer = type(getattr(engine, "optimizer", None)).__name__
    used = {
        "tensor parallel (mpu, or tensor_parallel in the config)": getattr(engine, "mp_world_size", 1) > 1,
        "sequence parallel": getattr(engine, "sequence_parallel_size", 1) > 1,
        "expert parallel (MoE layers of deepspeed.moe)": getattr(engine, "has_moe_layers", False),
        "ZenFlow (zero_optimization.zenflow)": bool(getattr(engine, "zenflow", False)),
        "DeepCompile (compile.deepcompile)": engine.is_deepcompile_enabled(),
        "MiCS (zero_optimization.mics_shard_size)": optimizer == "MiCS_Optimizer",
    }
    for what, is_used in used.items():
        if is_used:
            raise MHEError(f"MHE does not serve DeepSpeed with {what}: leave it out; ZeRO 0 to 3 without it is served")


def refuse_unfound(parameters: Sequence[Tensor]) -> None:
    """Refuse parameters that ZeRO has in hand, where the bound model has no engine around it.

    Raises:
        MHEError: says what to bind the regularizer to.
    """
    # ZeRO 3, ZeRO 1 and 2: each leaves a mark of its own on the parameters.
    if any(hasattr(parameter, mark) for parameter in parameters for mark in ("ds_id", "param_idx_in_group")):
        raise MHEError(
            "DeepSpeed has the parameters, but no engine of it is around the model that the regularizer was made for, "
            "so how often gradients are accumulated is not known: make it for the engine, or for the very module "
            "given to deepspeed.initialize (MHERegularizer(engine, config))"
        )


def averaging_ranks(engine: Any) -> torch.distributed.ProcessGroup | None:
    """The ranks whose gradients the engine averages; None where it leaves that to its optimizer (1-bit Adam)."""
    return engine.data_parallel_group if engine.enable_backward_allreduce else None


def is_last_micro_batch(engine: Any) -> bool:
    """Whether an optimizer step of the engine follows the micro-batch at hand.

    Raises:
        MHEError: the engine leaves that to the loop.
    """
    if not engine.managed_gradient_accumulation():
        raise MHEError(
            "DeepSpeed's managed_gradient_accumulation is off, so the engine does not know which micro-batch is the "
            "last before engine.step(): say it, regularizer(loss, sync=...)"
        )
    return bool(engine.is_gradient_accumulation_boundary())


def prepare(engine: Any, model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Make the engine ready for a penalty on these parameters of its model in the last micro-batch, now at hand."""
    # The engine tells its optimizer so when its model's output gets a gradient. The penalty's nodes were made later
    # and run before that: the gradient of a parameter that the loss does not reach would be kept for later.
    tell = getattr(engine.optimizer, "set_gradient_accumulation_boundary", None)
    if tell is not None and engine.managed_gradient_accumulation():
        tell(True)
    if engine.zero_optimization_stage() < 3 and engine.zero_cpu_offload():
        give_zeros(model, parameters)  # under ZeRO 3 it is found out which ones the task does not reach

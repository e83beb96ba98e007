"""DeepSpeed's own engine around a model, found, and refused where it does what is not supported.

Note [How the engine is found]
A regularizer that was bound before `deepspeed.initialize` knows the inner module only, and how often the engine
accumulates and when it steps is the engine's to say. The engine leaves hooks of its own on the module, closures over
itself. Rejected: asking the user for the engine; a loop that forgets it would train with a wrong lambda in silence.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons.model.unwrap import unwrap

_ENGINE = "DeepSpeedEngine"  # a name, not the class: DeepSpeed is optional
_LEAST = "0.19.8"
_RELIES_ON = (
    "managed_gradient_accumulation",
    "is_deepcompile_enabled",
    "inside_no_sync_ctxt",
    "_running_engine_backward",
)
_SPECIAL_ENGINES = {
    "PipelineEngine": "DeepSpeed's pipeline parallel (PipelineEngine)",
    "DeepSpeedHybridEngine": "DeepSpeed's hybrid engine",
}


def find_engine(model: nn.Module) -> Any | None:
    """The DeepSpeed engine that a model is, or that trains it; None where there is none, or inside a compiled graph.

    Raises:
        MHEError: the engine does something that is not supported.
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
            raise MHEError(f"MHE does not support {what}: train with deepspeed.initialize's plain engine, ZeRO 0 to 3")
    missing = [name for name in _RELIES_ON if not hasattr(engine, name)]
    if missing:
        raise MHEError(
            f"DeepSpeed {sys.modules['deepspeed'].__version__} is installed, whose engine has no {missing[0]!r}; MHE "
            f"supports {_LEAST} and later: pip install -U 'deepspeed>={_LEAST}'"
        )
    optimizer = type(getattr(engine, "optimizer", None)).__name__
    used = {
        "tensor parallel (mpu, or tensor_parallel in the config)": getattr(engine, "mp_world_size", 1) > 1,
        "sequence parallel": getattr(engine, "sequence_parallel_size", 1) > 1,
        "expert parallel (MoE layers of deepspeed.moe)": getattr(engine, "has_moe_layers", False),
        "ZenFlow (zero_optimization.zenflow)": bool(getattr(engine, "zenflow", False)),
        "DeepCompile (compile.deepcompile)": engine.is_deepcompile_enabled(),
    }
    for what, is_used in used.items():
        if is_used:
            raise MHEError(
                f"MHE does not support DeepSpeed with {what}: leave it out; ZeRO 0 to 3 without it is supported"
            )
    # This optimizer zeroes gradients when the model's output gets its own, and the penalty's are there by then.
    if optimizer == "BF16_Optimizer" and not engine.optimizer.immediate_grad_update:
        raise MHEError(
            "MHE does not support DeepSpeed ZeRO 1 with bfloat16 weights whose gradients are summed in float32 "
            "(data_types.grad_accum_dtype) at the end of each backward pass: set bf16.immediate_grad_update to true"
        )


def refuse_unfound(model: nn.Module, parameters: Callable[[], Sequence[Tensor]]) -> None:
    """Refuse a model whose parameters DeepSpeed trains, where it is not the engine's model itself.

    Raises:
        MHEError: says what to bind the regularizer to.
    """
    if "deepspeed" not in sys.modules:
        return
    # ZeRO 3, ZeRO 1 and 2: each leaves a mark of its own on the parameters.
    marked = any(hasattr(parameter, mark) for parameter in parameters() for mark in ("ds_id", "param_idx_in_group"))
    if marked or _is_within_an_engine(model):
        raise MHEError(
            f"DeepSpeed trains the parameters, but the {type(model).__name__} that the regularizer was made for is "
            "not the model of its engine, so how often gradients are accumulated is not known: make it for the engine "
            "(MHERegularizer(engine, config)) or for the very module given to deepspeed.initialize, and choose the "
            "layers with include=..."
        )


_ALONE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _is_within_an_engine(model: nn.Module) -> bool:
    """Whether a model is a part of an engine's model; looked up once for a model.

    Without ZeRO, DeepSpeed leaves no mark on the parameters, and a module does not know what it is a part of.
    """
    deepspeed = sys.modules.get("deepspeed.runtime.engine")
    if deepspeed is None or model in _ALONE or torch.compiler.is_compiling():
        return False
    engines = [value for value in gc.get_objects() if issubclass(type(value), deepspeed.DeepSpeedEngine)]
    if any(module is model for engine in engines for module in engine.modules()):
        return True
    _ALONE.add(model)
    return False

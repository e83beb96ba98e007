"""Engines that are not supported, by name: a penalty must never be computed from a shard of a parameter.

Two marks give an engine away: the wrapper around the model (seen at construction), and what it made of a parameter
(seen again at each use, because a model may be wrapped after the regularizer was bound).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.engines.dtensor.regions import holding

_REMEDY = (
    "train with DDP (accelerate launch --multi_gpu), FSDP2 (fully_shard, or fsdp_version: 2), tensor parallel "
    "(parallelize_module), both of these, DeepSpeed ZeRO, or in one process"
)

_WRAPPERS = {
    "DataParallel": "torch.nn.DataParallel (several GPUs in one process)",
    "FullyShardedDataParallel": "FSDP1 (FullyShardedDataParallel)",
}
_SPLITS_OF_A_SEQUENCE = {"cp_size": "context parallel", "sp_size": "sequence parallel"}
_DISTRIBUTED_TYPES = {"FSDP": "FSDP1 (fsdp_version: 1)", "MEGATRON_LM": "Megatron-LM"}


def _refuse(engine: str, where: str) -> None:
    raise MHEError(f"MHE does not support {engine} yet, found at {where}: {_REMEDY}")


def refuse_model(model: nn.Module) -> None:
    """Refuse a model whose wrapper, own or of any submodule, splits parameters between processes or devices.

    Raises:
        MHEError: names the engine and the module.
    """
    for name, module in model.named_modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                _refuse(_WRAPPERS[kind.__name__], f"module {name!r}" if name else type(model).__name__)


def refuse_distributed_type(name: str, *, is_fsdp2: bool = False) -> None:
    """Refuse what accelerate calls the distributed type, such as `"DEEPSPEED"`, where it is not supported.

    Raises:
        MHEError: names the engine.
    """
    if name in _DISTRIBUTED_TYPES and not (name == "FSDP" and is_fsdp2):
        _refuse(_DISTRIBUTED_TYPES[name], "accelerate's distributed type")


def refuse_parallelism(config: Any | None) -> None:
    """Refuse accelerate's `ParallelismConfig` where several ranks have one sequence, and its loss in parts.

    Raises:
        MHEError: names the kind, and how many ranks share a sequence.
    """
    for size, kind in _SPLITS_OF_A_SEQUENCE.items():
        ranks = getattr(config, size, None) or 1
        if ranks > 1:
            _refuse(f"{kind} ({size}={ranks})", "accelerate's parallelism_config")


def refuse_without_values(groups: Iterable[NeuronGroup]) -> None:
    """Refuse groups on the meta device. A regularizer may be bound there, before the weights are materialized.

    Raises:
        MHEError: names the neuron group.
    """
    for group in groups:
        if any(tensor.is_meta for tensor in group.tensors()):
            raise MHEError(
                f"neuron group {group.name!r} is on the meta device and has no values to regularize: load the weights "
                "(from_pretrained, or to_empty and load_state_dict) before the first penalty"
            )


def refuse_parameter(group: str, parameter: Tensor) -> None:
    """Refuse a parameter of a neuron group, as the optimizer has it, of which it is not known who holds what.

    Raises:
        MHEError: names the neuron group, and the engine or the placement.
    """
    if isinstance(parameter, DTensor):
        try:
            holding(parameter)
        except MHEError as error:
            raise MHEError(f"neuron group {group!r}: {error}") from error
    if hasattr(parameter, "_st_info"):  # what torch leaves of a DTensor
        _refuse("DDP around tensor parallel", f"neuron group {group!r}")

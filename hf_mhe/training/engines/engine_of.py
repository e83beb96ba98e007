"""Which engine a model is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hf_mhe.neurons import NeuronGroup
from hf_mhe.neurons.group import is_dtensor
from hf_mhe.training.engines.ddp import DDP
from hf_mhe.training.engines.deepspeed.engine import DeepSpeed
from hf_mhe.training.engines.deepspeed.find_engine import find_engine
from hf_mhe.training.engines.deepspeed.zero import is_partitioned
from hf_mhe.training.engines.dtensor.dtensors import DTensors
from hf_mhe.training.engines.dtensor.fsdp2 import as_updated
from hf_mhe.training.engines.forward_under_ddp import ForwardUnderDDP
from hf_mhe.training.engines.one_process import OneProcess
from hf_mhe.training.engines.protocol import Engine


def engine_of(
    model: nn.Module,
    groups: Sequence[NeuronGroup],
    forward: ForwardUnderDDP | None = None,
    *,
    divide_work: bool = True,
) -> Engine:
    """The engine that trains the groups of a model now; found anew for each step, for a model may be wrapped later.

    Args:
        model: the user's own model, unwrapped.
        groups: all that the penalty may be computed on; some of them may be DTensors and others not. None are needed
            to ask when the penalty is due, which is asked in every micro-batch and should cost nothing.
        forward: the hook on the model that notices DDP, if it has one.
        divide_work: whether ranks that could each compute the whole penalty divide it.

    Raises:
        MHEError: a DeepSpeed engine does something that is not supported.
    """
    deepspeed = find_engine(model)
    if deepspeed is not None or is_partitioned(groups):
        return DeepSpeed(
            deepspeed, model, groups, divide_work=divide_work, unpartitioned=_unpartitioned(model, groups)
        )
    if forward is not None and divide_work and forward.share.ranks > 1:
        return DDP(forward)
    return _unpartitioned(model, groups)


def _unpartitioned(model: nn.Module, groups: Sequence[NeuronGroup]) -> OneProcess:
    """The engine of parameters that no engine's object holds: they themselves show what they are."""
    if not groups or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return OneProcess()
    parameters = as_updated(model, [tensor for group in groups for tensor in group.tensors()])
    return DTensors(model) if any(map(is_dtensor, parameters)) else OneProcess()

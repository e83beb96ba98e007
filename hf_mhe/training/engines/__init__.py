"""Engines: who holds which part of a parameter, and what that means for the penalty; one file per engine.

Served: whole parameters in every process (one process, DDP), and DTensors (FSDP2, HSDP, tensor parallel). An engine
that is not served is refused by name.
"""

from hf_mhe.training.engines.ddp import ForwardUnderDDP, Part, divide, is_distributed, tie
from hf_mhe.training.engines.fsdp2 import Managed
from hf_mhe.training.engines.refuse import (
    refuse_distributed_type,
    refuse_model,
    refuse_parameter,
    refuse_without_values,
)
from hf_mhe.training.engines.sharded import Sharded, sharded_penalty

__all__ = [
    "ForwardUnderDDP",
    "Managed",
    "Part",
    "Sharded",
    "divide",
    "is_distributed",
    "refuse_distributed_type",
    "refuse_model",
    "refuse_parameter",
    "refuse_without_values",
    "sharded_penalty",
    "tie",
]

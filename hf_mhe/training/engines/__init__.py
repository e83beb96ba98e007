"""Engines: who holds which part of a parameter, and what that means for the penalty; one file per engine.

Supported: whole parameters in every process (one process, DDP), DTensors (FSDP2, HSDP, tensor parallel), and DeepSpeed
ZeRO 0 to 3. An engine that is not supported is refused by name.
"""

from hf_mhe.training.engines.ddp import ForwardUnderDDP, Part, divide, is_distributed, stop_together, tie
from hf_mhe.training.engines.deepspeed.engine import (
    averaging_ranks,
    divided_once,
    find_engine,
    is_last_micro_batch,
    prepare,
    refuse_unfound,
)
from hf_mhe.training.engines.deepspeed.zero import divided_energies, owners
from hf_mhe.training.engines.dtensor.fsdp2 import Managed
from hf_mhe.training.engines.dtensor.sharded_penalty import Sharded, sharded_penalty
from hf_mhe.training.engines.dtensor.workload import sharded_rows
from hf_mhe.training.engines.refuse import (
    refuse_distributed_type,
    refuse_model,
    refuse_parameter,
    refuse_without_values,
)

__all__ = [
    "ForwardUnderDDP",
    "Managed",
    "Part",
    "Sharded",
    "averaging_ranks",
    "divide",
    "divided_energies",
    "divided_once",
    "find_engine",
    "is_distributed",
    "is_last_micro_batch",
    "owners",
    "prepare",
    "refuse_distributed_type",
    "refuse_model",
    "refuse_parameter",
    "refuse_unfound",
    "refuse_without_values",
    "sharded_penalty",
    "sharded_rows",
    "stop_together",
    "tie",
]

"""Training with MHE: the config, the regularizer (when, how much, on which engine), and the Trainer.

The names that need transformers are imported on first use, so that reading a config does not import transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_mhe.training.arguments import MHEArguments
from hf_mhe.training.config import CONFIG_NAME, MHEConfig
from hf_mhe.training.outputs.energy_loss import EnergyLoss
from hf_mhe.training.regularizer import MHERegularizer

if TYPE_CHECKING:
    from hf_mhe.training.energy_callback import EnergyCallback
    from hf_mhe.training.trainer import MHETrainer, with_mhe

__all__ = [
    "CONFIG_NAME",
    "EnergyCallback",
    "EnergyLoss",
    "MHEArguments",
    "MHEConfig",
    "MHERegularizer",
    "MHETrainer",
    "with_mhe",
]

_MODULE_OF = {
    "EnergyCallback": "hf_mhe.training.energy_callback",
    "MHETrainer": "hf_mhe.training.trainer",
    "with_mhe": "hf_mhe.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hf_mhe.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)

"""Training with MHE: the config, the regularizer (when, how much, on which engine), and the Trainer.

The Trainer's names are imported on first use, so that reading a config does not import transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_mhe.training.arguments import MHEArguments
from hf_mhe.training.config import CONFIG_NAME, MHEConfig
from hf_mhe.training.outputs.energy_loss import EnergyLoss
from hf_mhe.training.regularizer import MHERegularizer

if TYPE_CHECKING:
    from hf_mhe.training.trainer import MHETrainer, with_mhe

__all__ = ["CONFIG_NAME", "EnergyLoss", "MHEArguments", "MHEConfig", "MHERegularizer", "MHETrainer", "with_mhe"]


def __getattr__(name: str) -> Any:
    if name not in ("MHETrainer", "with_mhe"):
        raise AttributeError(f"module 'hf_mhe.training' has no attribute {name!r}")
    from hf_mhe.training import trainer

    return getattr(trainer, name)

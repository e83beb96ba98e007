"""Minimum hyperspherical energy (MHE) for the Hugging Face ecosystem.

Every public name is imported on first use, so that `import hf_mhe` stays cheap: it loads neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_mhe._version import __version__

_ROOM_OF = {
    "MHEError": "hf_mhe.errors",
    "hyperspherical_energy": "hf_mhe.energy",
    "expected_energy": "hf_mhe.energy",
    "energy_lower_bound": "hf_mhe.energy",
    "minimize_energy": "hf_mhe.energy",
    "equivalent_dimension": "hf_mhe.energy",
    "NeuronGroup": "hf_mhe.neurons",
    "Coverage": "hf_mhe.neurons",
    "neuron_groups": "hf_mhe.neurons",
    "coverage": "hf_mhe.neurons",
    "EnergyCallback": "hf_mhe.training",
    "EnergyLoss": "hf_mhe.training",
    "MHEArguments": "hf_mhe.training",
    "MHEConfig": "hf_mhe.training",
    "MHERegularizer": "hf_mhe.training",
    "MHETrainer": "hf_mhe.training",
    "with_mhe": "hf_mhe.training",
    "EnergyReport": "hf_mhe.analysis",
    "GroupEnergy": "hf_mhe.analysis",
    "Comparison": "hf_mhe.analysis",
    "analyze": "hf_mhe.analysis",
    "compare": "hf_mhe.analysis",
    "measure": "hf_mhe.analysis",
    "measurement_path": "hf_mhe.analysis",
    "push_to_hub": "hf_mhe.hub",
}

__all__ = [*_ROOM_OF, "__version__"]

if TYPE_CHECKING:
    from hf_mhe.analysis import Comparison, EnergyReport, GroupEnergy, analyze, compare, measure, measurement_path
    from hf_mhe.energy import (
        energy_lower_bound,
        equivalent_dimension,
        expected_energy,
        hyperspherical_energy,
        minimize_energy,
    )
    from hf_mhe.errors import MHEError
    from hf_mhe.hub import push_to_hub
    from hf_mhe.neurons import Coverage, NeuronGroup, coverage, neuron_groups
    from hf_mhe.training import (
        EnergyCallback,
        EnergyLoss,
        MHEArguments,
        MHEConfig,
        MHERegularizer,
        MHETrainer,
        with_mhe,
    )


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'hf_mhe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_ROOM_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

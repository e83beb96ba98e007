"""Which rows of which parameter are neurons: of any module, and of any checkpoint from its names and shapes.

Knows modules, names and shapes; computes no energy.
"""

from hf_mhe.neurons.below import below
from hf_mhe.neurons.checkpoint.groups import checkpoint_groups
from hf_mhe.neurons.coverage import Adapters, Coverage, coverage, neuron_groups
from hf_mhe.neurons.group import NeuronGroup, Role, Shared
from hf_mhe.neurons.model.unwrap import unwrap
from hf_mhe.neurons.patterns import select_groups

__all__ = [
    "Adapters",
    "Coverage",
    "NeuronGroup",
    "Role",
    "Shared",
    "below",
    "checkpoint_groups",
    "coverage",
    "neuron_groups",
    "select_groups",
    "unwrap",
]

"""Which rows of which parameter are neurons: of any module, and of any checkpoint from its names and shapes.

Knows modules, names and shapes; computes no energy.
"""

from hf_mhe.neurons.checkpoint.groups import checkpoint_groups
from hf_mhe.neurons.coverage import coverage, neuron_groups
from hf_mhe.neurons.group import Coverage, NeuronGroup, Role
from hf_mhe.neurons.matrices import Adapters
from hf_mhe.neurons.members import Stack, stacks
from hf_mhe.neurons.model.unwrap import unwrap
from hf_mhe.neurons.patterns import select_groups
from hf_mhe.neurons.weight_cache import WeightCache

__all__ = [
    "Adapters",
    "Coverage",
    "NeuronGroup",
    "Role",
    "Stack",
    "WeightCache",
    "checkpoint_groups",
    "coverage",
    "neuron_groups",
    "select_groups",
    "stacks",
    "unwrap",
]

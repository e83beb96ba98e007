"""Tensors in, numbers out: potentials (functions of one cosine) and walks (ways to visit every pair of neurons).

Nothing here knows a module, a file or the Hugging Face libraries.
"""

from hf_mhe.energy.equivalent_dimension import equivalent_dimension
from hf_mhe.energy.estimators.rotating import inclusion_probabilities, rotating_share
from hf_mhe.energy.estimators.sampled import sampled_energy
from hf_mhe.energy.family import (
    adversarial_projection,
    adversarial_projection_energy,
    angle_preserving_projection,
    angle_preserving_projection_energy,
    coherence_penalty,
    double_soft_orthogonality_penalty,
    gram_determinant_penalty,
    minimal_angle_penalty,
    random_projection_energy,
    separation_penalty,
    soft_orthogonality_penalty,
    srip_penalty,
)
from hf_mhe.energy.functional import hyperspherical_energy
from hf_mhe.energy.observers.energies import VARIANTS
from hf_mhe.energy.potential import Potential
from hf_mhe.energy.reference.bounds import energy_lower_bound
from hf_mhe.energy.reference.crowding_parts import CrowdingParts, crowding_parts
from hf_mhe.energy.reference.expectation import expected_energy, expected_energy_std
from hf_mhe.energy.reference.score import EnergyScore, energy_score
from hf_mhe.energy.solver.minimize import minimize_energy
from hf_mhe.energy.spectrum import Spectrum, spectrum
from hf_mhe.energy.statistics import PairStatistics, pair_statistics
from hf_mhe.energy.walks.definition import dense_energy

__all__ = [
    "VARIANTS",
    "CrowdingParts",
    "EnergyScore",
    "PairStatistics",
    "Potential",
    "Spectrum",
    "adversarial_projection",
    "adversarial_projection_energy",
    "angle_preserving_projection",
    "angle_preserving_projection_energy",
    "coherence_penalty",
    "crowding_parts",
    "dense_energy",
    "double_soft_orthogonality_penalty",
    "energy_lower_bound",
    "energy_score",
    "equivalent_dimension",
    "expected_energy",
    "expected_energy_std",
    "gram_determinant_penalty",
    "hyperspherical_energy",
    "inclusion_probabilities",
    "minimal_angle_penalty",
    "minimize_energy",
    "pair_statistics",
    "random_projection_energy",
    "rotating_share",
    "sampled_energy",
    "separation_penalty",
    "soft_orthogonality_penalty",
    "spectrum",
    "srip_penalty",
]

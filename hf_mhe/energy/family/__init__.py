"""The family: other objectives for spread-out neurons, on the same contract as the energy, because users compare.

Each takes an `(n, d)` weight, one neuron a row, and returns a 0-dim tensor that is lower where the neurons are more
diverse, differentiable with respect to the weight. k: dimensions after projection; C: projections; m: iterations;
g: the smaller of n and d. Cost counts operations with the gradient; memory is beside the weight.

| function | it measures | lengths count | cost | memory |
| --- | --- | --- | --- | --- |
| `random_projection_energy` (CoMHE) | energy after C random projections | no | `3 C n² k` | `C k (n + d)` |
| `angle_preserving_projection_energy` (CoMHE) | energy after one that keeps angles | no | `3 n² k` | `n d` |
| `adversarial_projection_energy` (CoMHE) | energy after one that raises it | no | `O(n² k)` | `n²` |
| `minimal_angle_penalty` (MMA) | mean angle to the nearest neuron | no | `n² d` | `n d` |
| `separation_penalty` (MHS) | smallest distance of all pairs | no | `n² d` | `n d` |
| `gram_determinant_penalty` (MGD) | log-determinant of the kernel matrix | no | `O(n³ + n² d)` | `n²` |
| `soft_orthogonality_penalty` (SO) | `W Wᵀ - I`, squared Frobenius norm | yes | `6 n d g` | `g²` |
| `double_soft_orthogonality_penalty` (DSO) | the same of rows plus of columns | yes | `6 n d g` | `g²` |
| `srip_penalty` (SRIP) | `W Wᵀ - I`, spectral norm by power iteration | yes | `12 m n d` | `n d` |
| `coherence_penalty` (MC) | `W Wᵀ - I`, largest entry | yes | `n² d` | `n d` |

The CoMHE members are objectives of their own, not estimators of the energy. `angle_preserving_projection` and
`adversarial_projection` move a projection that outlives one step. Without unrolling, the adversarial one holds `n d`.
Those that count no lengths also take `dead="skip_negligible"`, as `hyperspherical_energy` does: training asks for it.
"""

from hf_mhe.energy.family.adversarial import adversarial_projection, adversarial_projection_energy
from hf_mhe.energy.family.angle_preserving import angle_preserving_projection, angle_preserving_projection_energy
from hf_mhe.energy.family.coherence import coherence_penalty
from hf_mhe.energy.family.gram_determinant import gram_determinant_penalty
from hf_mhe.energy.family.minimal_angle import minimal_angle_penalty
from hf_mhe.energy.family.random_projection import random_projection_energy
from hf_mhe.energy.family.separation import separation_penalty
from hf_mhe.energy.family.soft_orthogonality import double_soft_orthogonality_penalty, soft_orthogonality_penalty
from hf_mhe.energy.family.srip import srip_penalty

__all__ = [
    "adversarial_projection",
    "adversarial_projection_energy",
    "angle_preserving_projection",
    "angle_preserving_projection_energy",
    "coherence_penalty",
    "double_soft_orthogonality_penalty",
    "gram_determinant_penalty",
    "minimal_angle_penalty",
    "random_projection_energy",
    "separation_penalty",
    "soft_orthogonality_penalty",
    "srip_penalty",
]

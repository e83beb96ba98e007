"""What `softening="auto"`, the default, is: exact, but for pairs of neurons that nearly coincide."""

from __future__ import annotations

# Note [Copies in training]
# Models come with copies: rows of a vocabulary resized to one mean, replicated key-value heads, layers widened by
# copies, rows of a head that started at zero and whose classes have not come up. Their exact energy is infinite, and
# of rows that nearly coincide so steep that it ends the task. So by default a pair pulls no harder than at a cosine of
# 0.95, from which on the analysis counts near-duplicates: beyond it goes on along the tangent. All other pairs have
# the energy of the paper, to the last digit, and so have layers without near-duplicates.
#
# Measured: an MLP 784-8-8-10 (Fashion-MNIST, 600 steps), widened eightfold by copies, 100 steps of SGD (0.05, momentum
# 0.9, 128 images), seeds 1 to 3. Task loss and the largest cosine between copies, mean over the neurons, first layer:
# without MHE 0.575, 1.000. Hidden weight 1: 0.541, 0.87; tangent from 0.98 on 0.571, 0.84; from 0.9 on 0.563, 0.94;
# softening 0.316, 0.5 for all pairs 0.556, 0.90 and 0.551, 1.00; softening 0.01 2.30, at chance. Hidden weight 10
# (seeds 1, 2): 0.637, 0.71; from 0.98 on 0.98; from 0.99 on 1.87; softening 0.316, 0.5 (seeds 1 to 3) 0.609, 0.560.
# Without `part_copies` no copy parts, at 0.550. A head 32-10 that starts at zero, ten steps with half of the classes
# (digits, SGD 0.1, 110 steps, seeds 0 to 2): 1.05, without MHE 1.64, copies apart (0.13) after six steps. Rejected:
# softening for all pairs by default, which is as good and changes every energy, by 5 % between neurons at a right
# angle, and its gradient by 10 %; a cap on the gradient, which is the gradient of no energy.
CLOSEST = 0.1**0.5  # the chord at a cosine of 0.95
AUTO = "auto"


class AutoSoftening:
    """`AUTO` as a default: one that is text would be read as a number by a parser of arguments that reads numbers."""

    def __repr__(self) -> str:
        return AUTO

"""What a layer's energy has beyond that of a random draw, divided by its cause."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from hf_mhe.energy.potential import Potential
from hf_mhe.energy.reference.expectation import check_shape, random_mean
from hf_mhe.errors import MHEError

# Note [Parts of the excess]
# Around a right angle the pair function is `F(c) = F(0) + F'(0) c + F''(0) c²/2 + …`. A mean over pairs therefore has
# a part by the mean cosine, a part by the mean squared cosine, and a rest, to which only large cosines contribute. Of
# random directions the first is 0 and the second has 1/d for the mean square, so that the excess over them has
#
#     a shared direction, F'(0) m₁;      concentration, ½ F''(0) (m₂ − 1/d);      close pairs, all the rest.
#
# m₁ is the squared length of the mean direction, up to 1/n; and m₂ is 1/k where the neurons fill k dimensions evenly.
# Half space counts every neuron together with its mirror image: F is even and the first part 0, and the fixed pairs of
# a neuron with its own image take their share of the mean. Pairs that coincide are in neither energy nor moments; what
# little their absence does to that share is in the rest. Rejected: a regression of F on c and c² over the layer's own
# pairs, whose coefficients change from layer to layer, so that the parts of two layers could not be compared.


@dataclass(frozen=True)
class CrowdingParts:
    """The excess of an energy over `expected`, divided; the three add up to it.

    Args:
        shared_direction: from the mean cosine: the neurons point the same way on average, as with a common offset.
            Negative where they cancel each other; 0 in half space.
        concentration: from the mean squared cosine: they fill few of their dimensions.
        close_pairs: the rest: pairs that are much closer than these two means say.

    All are None where there is no excess to divide: `expected` is `inf`, or the energy no finite number.
    """

    shared_direction: float | None
    concentration: float | None
    close_pairs: float | None


def crowding_parts(
    energy: float,
    n: int,
    d: int,
    potential: Potential,
    *,
    mean_cosine: float,
    mean_square_cosine: float,
    coincident: int = 0,
) -> CrowdingParts:
    """Divide `energy − expected` by cause; see Note [Parts of the excess].

    Args:
        energy: the mean energy of `n` neurons in dimension `d`, coincident pairs left out.
        potential: of the energy.
        mean_cosine: over all unordered pairs, coincident ones included.
        mean_square_cosine: the same of the squared cosine.
        coincident: unordered pairs that the energy leaves out.

    Raises:
        MHEError: n below 2, d below 1, either not an integer, or a potential with softening or a tangent: the expected
            energy is that of the exact one.
    """
    if potential.softening or potential.closest:
        raise MHEError(
            f"crowding_parts divides exact energies: softening and closest must be 0, "
            f"got {potential.softening!r} and {potential.closest!r}"
        )
    n, d = check_shape(n, d)
    expected = random_mean(n, d, potential)
    remaining = n * (n - 1) // 2 - coincident
    if not (math.isfinite(expected) and math.isfinite(energy)) or remaining <= 0:
        return CrowdingParts(None, None, None)
    slope, bend = derivatives(replace(potential, parts=False))
    weight = _weight_of_pairs(n, coincident, potential)
    # A coincident pair has a cosine of 1; in half space of 1 or -1, where the mean cosine does not count.
    first = _without(mean_cosine, n, coincident)
    second = _without(mean_square_cosine, n, coincident)
    shared = 0.0 if potential.space == "half" else weight * slope * first
    concentration = weight * 0.5 * bend * (second - 1 / d)
    return CrowdingParts(shared, concentration, energy - expected - shared - concentration)


def _without(mean: float, n: int, coincident: int) -> float:
    """The mean over the pairs that do not coincide, of a moment that is 1 for those that do."""
    pairs = n * (n - 1) / 2
    return mean + (mean - 1) * coincident / (pairs - coincident)


def _weight_of_pairs(n: int, coincident: int, potential: Potential) -> float:
    """How much of the mean energy the mean of the pair function over the pairs that do not coincide is."""
    if potential.space == "full":
        return 1.0
    # Four of the points' ordered pairs, or two of each sign, for each ordered pair of neurons.
    ordered = n * (n - 1) - 2 * coincident
    return 2 * ordered / (4 * ordered + 2 * n)


@lru_cache(maxsize=256)
def derivatives(potential: Potential) -> tuple[float, float]:
    """`F'(0)` and `F''(0)` of the pair function, by automatic differentiation of its definition."""
    # Whatever the caller has switched off, inference included.
    with torch.inference_mode(False), torch.enable_grad():
        cos = torch.zeros((), dtype=torch.float64, device="cpu", requires_grad=True)
        (slope,) = torch.autograd.grad(potential.value(cos), cos, create_graph=True)
        (bend,) = torch.autograd.grad(slope, cos)
    return slope.item(), bend.item()

"""In one or two words, what crowds the neurons of a layer.

Note [The verdict]
The words are few, and mean:

    copies             neurons that are near-duplicates of each other
    shared direction   all neurons lean to one side
    few dimensions     the neurons fill fewer dimensions than the layer has
    spread             more evenly spread than independent random directions would be
    as random          no more and no less than independent random directions

Whatever potential a report is asked for, the sizes of the three causes are of one fixed pair function, the one of the
equivalent dimension without its mirror image, `K(c) = 1 / (2.1 − 2c)`, in units of K(0), so that a layer has one
verdict in full space and in half space, but for neurons that are copies across the sign, which count in half space
alone. In half space the energy does not see a shared direction as such; to a user it is still what is there.

- shared direction: `K'(0) m₁`, with m₁ the mean cosine of the pairs that are no near-duplicates.
- few dimensions: `½ K''(0) m₂`, with m₂ the mean squared cosine of the same pairs beyond what a shared direction of
  that m₁ makes by itself, `m₁² + (1 − m₁)² / d`; without one this is 1/d, a random draw.
- copies: what the equivalent dimension counts beyond m₂ alone: the excess over that of random directions with the same
  m₂. For neurons that are random in a subspace this is 0, so that a low rank is not taken for copies.

A cause is named if it is at least a tenth of a random draw's own `½ K''(0) / d`, beyond four standard deviations of a
random draw, and at least a tenth of all causes together. Below a tenth of a random draw nothing can be gained: the
layer would use a tenth more of its dimensions.

Copies are named where more than one neuron in a hundred is in a cluster of near-duplicates, whatever they weigh, for
each of them can be merged; where fewer are, only as the largest cause: the embeddings of a vocabulary have words of
one stem, at a cosine of 0.8, and hardly a copy. In a few dimensions neurons come close to each other by chance: 500
directions in a plane are all near-duplicates of some other, and yet a random draw. So near-duplicates count only if
there are more than chance makes, twice and four standard deviations, in the dimension that the neurons fill; where
they fill less than a plane, as in a collapsed layer, in the layer's own. Pairs that coincide count whatever
chance makes, from one for two hundred neurons on. Where every pair is a near-duplicate, copies is all there is to say.

Rejected: the parts of the excess of the report's own energy, which grow without a bound as two neurons approach each
other, and which have no shared direction in half space.
"""

from __future__ import annotations

import math

from hf_mhe.energy.reference.crowding import Z, equivalent_dimension_z, random_excess

COPIES, SHARED_DIRECTION, FEW_DIMENSIONS = "copies", "shared direction", "few dimensions"
SPREAD, AS_RANDOM = "spread", "as random"
VERDICTS = (COPIES, SHARED_DIRECTION, FEW_DIMENSIONS, SPREAD, AS_RANDOM)
"""The words that a verdict is made of."""

_OF_RANDOM = 0.1  # a cause counts from this share of a random draw's own concentration on
_OF_ALL = 0.1  # and from this share of all causes
_DEVIATIONS = 4.0
_CLUSTERED = 0.01  # a share of the neurons
_PLANE = 1.5  # dimensions: random neurons of a plane, even ten of them, fill more
_SLOPE, _CURVATURE = 2 / 2.1, 4 / 2.1**2  # K'(0) / K(0), ½ K''(0) / K(0)


def crowding_verdict(
    n: int,
    d: int,
    *,
    equivalent_dimension: float,
    mean_cosine: float,
    mean_square_cosine: float,
    near_duplicates: int,
    coincident: int,
    clustered: int,
    duplicate_cosine: float,
    mirrored: bool,
) -> str:
    """What crowds n neurons of dimension d, or that nothing does; several causes by size, with a comma between.

    Args:
        n: neurons, at least 2.
        d: their dimension, at least 2.
        equivalent_dimension: of these neurons, 1 to `inf`.
        mean_cosine: over pairs, coincident ones included.
        mean_square_cosine: the same of the squares.
        near_duplicates: pairs whose cosine reaches `duplicate_cosine`; its absolute value, if `mirrored`.
        coincident: those of them that are at distance zero.
        clustered: neurons that are in one of them.
        duplicate_cosine: in (0, 1].
        mirrored: whether a neuron and its mirror image count alike.

    Source: Note [The verdict].
    """
    pairs = n * (n - 1) / 2
    filled = _filled(mean_square_cosine)
    chance = pairs * _share_of_pairs(filled if filled > _PLANE else d, duplicate_cosine, mirrored)
    has_copies = near_duplicates > 2 * chance + _DEVIATIONS * math.sqrt(chance) or coincident > _CLUSTERED * n / 2
    if has_copies and near_duplicates == pairs:
        return COPIES
    copies = near_duplicates if has_copies else 0
    # A near-duplicate has a cosine of about 1, and where mirror images count perhaps of -1.
    first = max(0.0, (mean_cosine * pairs - copies) / (pairs - copies))
    second = max(0.0, (mean_square_cosine * pairs - copies) / (pairs - copies))
    sizes = _sizes(d, pairs, equivalent_dimension, first, second)
    total = sum(sizes.values())
    found = {cause: size for cause, size in sizes.items() if size > 0 and size >= _OF_ALL * total}
    if has_copies and clustered > _CLUSTERED * n:
        found[COPIES] = sizes[COPIES]
    elif COPIES in found and found[COPIES] < max(found.values()):
        del found[COPIES]
    if found:
        return ", ".join(sorted(found, key=lambda cause: -found[cause]))
    above = equivalent_dimension_z(equivalent_dimension, n, d)
    return SPREAD if above > _DEVIATIONS and equivalent_dimension > (1 + _OF_RANDOM) * d else AS_RANDOM


def _filled(mean_square_cosine: float) -> float:
    """The dimension in which random directions have this mean squared cosine."""
    return max(1.0, 1 / mean_square_cosine) if mean_square_cosine > 0 else math.inf


def _share_of_pairs(dimension: float, cosine: float, mirrored: bool) -> float:
    """The share of pairs of random directions in a dimension, integer or not, whose cosine is at least this one."""
    from scipy.special import betainc

    if dimension == math.inf:
        return 0.0
    # c² ~ Beta(1/2, (δ − 1)/2), and half of the cosines are negative.
    tail = float(betainc((dimension - 1) / 2, 0.5, 1 - cosine**2)) if dimension > 1 else 1.0
    return tail if mirrored else tail / 2


def _sizes(d: int, pairs: float, dimension: float, mean_cosine: float, mean_square: float) -> dict[str, float]:
    """The causes' sizes, 0 for one that is too small to count."""
    concentration = mean_square - mean_cosine**2 - (1 - mean_cosine) ** 2 / d
    excess = 0.0 if dimension == math.inf else random_excess(dimension)
    filled = _filled(mean_square)
    same = 0.0 if filled == math.inf else random_excess(filled)
    # Of random directions: the cosine has mean 0 and variance 1/d, its square a variance of 2 (d − 1) / (d² (d + 2)).
    deviation = math.sqrt(2 * (d - 1) / (d * d * (d + 2)) / pairs)
    smallest = _OF_RANDOM * _CURVATURE / d
    sizes = {
        SHARED_DIRECTION: (_SLOPE * mean_cosine, _SLOPE / math.sqrt(d * pairs)),
        FEW_DIMENSIONS: (_CURVATURE * concentration, _CURVATURE * deviation),
        COPIES: (excess - same, Z * deviation),
    }
    return {
        cause: size if size > _DEVIATIONS * noise and size >= smallest else 0.0
        for cause, (size, noise) in sizes.items()
    }

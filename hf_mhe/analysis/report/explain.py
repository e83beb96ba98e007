"""What the numbers of one layer mean, and what could be done about them, in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.tokens import TokenRow, Vocabulary
from hf_mhe.energy.reference.verdict import AS_RANDOM, COPIES, FEW_DIMENSIONS, SHARED_DIRECTION, SPREAD
from hf_mhe.text import escaped, number

_PAIRS, _CLUSTERS, _ROWS = 5, 5, 8
_NEW = "analyze the model again with this version"


def explain(group: GroupEnergy, *, duplicate_cosine: float = 0.95) -> list[str]:
    """Paragraphs of plain text on one layer: how crowded it is; each cause in two sentences; its closest pairs.

    Args:
        group: a row of a report.
        duplicate_cosine: of that report, from which on a pair counts as near-duplicates.
    """
    if group.verdict is None or group.spread is None:
        return [f"The report has no spread, because an earlier version wrote it: {_NEW}."]
    found = [_crowded(group)]
    if group.apart is not None:
        found.append(
            f"Its rows do not compete ({group.apart}), so being alike makes none of them superfluous. It is left out "
            "of the summary, the ranking and the checks."
        )
    found += [_SAID[cause](group, duplicate_cosine) for cause in group.verdict.split(", ")]
    if group.near_dead:
        short = _rows(group, group.near_dead_rows)
        found.append(
            f"{_counted(group.near_dead, 'row')} shorter than 2^-12 of the longest: {short}. Their direction may be a "
            "rounding error; training takes them for dead."
        )
    found += _closest(group)
    if group.vocabulary is not None:
        found += _of_vocabulary(group.vocabulary)
    return found


def _crowded(group: GroupEnergy) -> str:
    dimension = group.equivalent_dimension
    neurons = f"Its {group.n:,} neurons of dimension {group.d:,}"
    if dimension == math.inf:
        return (
            f"{neurons} crowd each other less than random directions do in any dimension: they are all but orthogonal."
        )
    return (
        f"{neurons} are as crowded as independent random directions in {number(dimension, 1, thousands=True)} "
        f"dimensions: a spread of {number(group.spread, 3)}."
    )


def _copies(group: GroupEnergy, duplicate_cosine: float) -> str:
    clustered = sum(map(len, group.clusters))
    if not clustered:
        return (
            "Some neurons are much closer to each other than the rest, up to a cosine of "
            f"{number(group.max_cosine, 3)}, though no pair reaches {duplicate_cosine:g}. They are copies that have "
            "drifted apart, or answer to much the same: a lower duplicate_cosine lists them, and training with MHE "
            "parts them further."
        )
    clusters = _counted(len(group.clusters), "cluster")
    return (
        f"{clustered:,} neurons are in {clusters} of near-duplicates (a cosine of {duplicate_cosine:g} or more), so "
        f"that {group.distinct or group.n:,} of {group.n:,} are distinct. The copies of a cluster can be merged into "
        "one, or, where training goes on, MHE parts them."
    )


def _shared_direction(group: GroupEnergy, duplicate_cosine: float) -> str:
    length = math.sqrt(max(0.0, group.mean_cosine or 0.0))
    return (
        f"They lean to one side: the mean of their directions has a length of {number(length, 2)}, where that of a "
        f"random draw has {number(1 / math.sqrt(group.n), 2)}. A bias does the same, so there is little to gain and "
        "nothing to fear; an energy in half space does not count it as such."
    )


def _few_dimensions(group: GroupEnergy, duplicate_cosine: float) -> str:
    fill = 1 / group.mean_square_cosine if group.mean_square_cosine else math.inf
    return (
        f"They fill few of the {group.d:,} dimensions: their mean squared cosine is that of random directions in "
        f"{number(fill, 0, thousands=True)}. So a low rank keeps more of this layer than of a random one (--spectrum "
        "gives its ranks), and training with MHE makes it use more of its dimensions."
    )


def _spread(group: GroupEnergy, duplicate_cosine: float) -> str:
    return (
        "They are more evenly spread than random directions would be. There is no redundancy to remove here, and "
        "nothing that MHE would still have to do."
    )


def _as_random(group: GroupEnergy, duplicate_cosine: float) -> str:
    return (
        "They are no more crowded than random directions would be. Merging, pruning or a low rank takes as much away "
        "here as of a random layer; MHE can still spread them more evenly."
    )


_SAID = {
    COPIES: _copies,
    SHARED_DIRECTION: _shared_direction,
    FEW_DIMENSIONS: _few_dimensions,
    SPREAD: _spread,
    AS_RANDOM: _as_random,
}


def _closest(group: GroupEnergy) -> list[str]:
    """The first near-duplicate pairs and clusters, by row and by what the row is called."""
    found = []
    if group.duplicate_pairs:
        listed = group.duplicate_pairs[:_PAIRS]
        pairs = [f"{_called(group, i)} and {_called(group, j)} at {cosine:.4f}" for i, j, cosine in listed]
        found.append(f"Closest rows: {_listed(pairs, group.near_duplicates)}.")
    if group.clusters:
        clusters = [f"[{_rows(group, rows)}]" for rows in group.clusters[:_CLUSTERS]]
        found.append(f"Clusters: {_listed(clusters, len(group.clusters))}.")
    return found


def _called(group: GroupEnergy, row: int) -> str:
    return f"{row} ({escaped(group.row_names[row])})" if row in group.row_names else str(row)


def _rows(group: GroupEnergy, rows: tuple[int, ...]) -> str:
    return _listed((_called(group, row) for row in rows[:_ROWS]), len(rows))


def _of_vocabulary(vocabulary: Vocabulary) -> list[str]:
    """What the tokens of a vocabulary are: equal, as a resize leaves them, or as those that are never trained."""
    found = []
    for part in vocabulary.equal[:_CLUSTERS]:
        found.append(f"{part.count:,} rows are equal number for number: {_tokens(part.first, part.count)}.")
    mean = vocabulary.at_mean.count + vocabulary.near_mean.count
    if mean:
        rows = (*vocabulary.at_mean.first, *vocabulary.near_mean.first)
        found.append(
            f"{_counted(mean, 'row')} at the mean of all rows, where a resized vocabulary begins: "
            f"{_tokens(rows, mean)}. Train them, or cut the vocabulary back."
        )
    if vocabulary.beyond:
        found.append(
            f"{_counted(vocabulary.beyond, 'row')} after the tokenizer's last token, which no text can reach."
        )
    untrained = vocabulary.untrained
    if untrained is not None and untrained.separates:
        rows = tuple(row for row, _ in untrained.rows)
        others = f": {_tokens(rows, untrained.count)}" if rows else ""
        found.append(
            f"{_counted(untrained.count, 'token')} besides {_counted(untrained.references, 'unused row')} "
            f"({untrained.reference}) look never trained{others}."
        )
    if vocabulary.note:
        found.append(f"Tokens have no texts: {vocabulary.note}.")
    return found


def _tokens(rows: Iterable[TokenRow], total: int) -> str:
    """The first rows by what they are called, which is fit to be shown already."""
    return _listed((str(row.row) if row.text is None else row.text for row in list(rows)[:_ROWS]), total)


def _listed(shown: Iterable[str], total: int) -> str:
    shown = list(shown)
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return ", ".join(shown) + more


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

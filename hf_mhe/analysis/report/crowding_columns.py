"""The columns of a row that say how crowded its neurons are, from what one walk over their pairs gathered."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_mhe.energy import PairStatistics, Potential
from hf_mhe.energy.reference.crowding import equivalent_dimension_z
from hf_mhe.energy.reference.crowding_parts import crowding_parts
from hf_mhe.energy.reference.verdict import crowding_verdict


def crowding_columns(pairs: PairStatistics, potential: Potential, duplicate_cosine: float) -> dict[str, Any]:
    """The fields of `GroupEnergy` on crowding, by name."""
    n, d, dimension = pairs.n, pairs.d, pairs.equivalent_dimension
    moments = {"mean_cosine": pairs.mean_cosine, "mean_square_cosine": pairs.mean_square_cosine}
    parts = crowding_parts(pairs.energy, n, d, potential, **moments, coincident=pairs.coincident)
    verdict = crowding_verdict(
        n,
        d,
        equivalent_dimension=dimension,
        **moments,
        near_duplicates=pairs.near_duplicates,
        coincident=pairs.coincident,
        clustered=sum(map(len, pairs.clusters)),
        duplicate_cosine=duplicate_cosine,
        mirrored=potential.space == "half",
    )
    return {
        "spread": dimension / d,
        "equivalent_dimension_z": equivalent_dimension_z(dimension, n, d),
        "verdict": verdict,
        **dataclasses.asdict(parts),
    }

"""The columns of a row that say how crowded its neurons are, from what one walk over their pairs gathered."""

from __future__ import annotations

from typing import Any

from hf_mhe.energy import EnergyScore, PairStatistics, Potential
from hf_mhe.energy.reference.crowding import equivalent_dimension_std
from hf_mhe.energy.reference.parts import crowding_parts
from hf_mhe.energy.reference.verdict import crowding_verdict


def crowding_columns(pairs: PairStatistics, meaning: EnergyScore, potential: Potential) -> dict[str, Any]:
    """The fields of `GroupEnergy` on crowding, by name."""
    n, d, dimension = pairs.n, pairs.d, pairs.equivalent_dimension
    parts = crowding_parts(pairs, meaning.expected, potential)
    return {
        "spread": dimension / d,
        "equivalent_dimension_z": (dimension - d) / equivalent_dimension_std(n, d),
        "verdict": crowding_verdict(
            n,
            d,
            equivalent_dimension=dimension,
            mean_cosine=pairs.mean_cosine,
            mean_square_cosine=pairs.mean_square_cosine,
            clustered=sum(map(len, pairs.clusters)),
        ),
        "shared_direction": None if parts is None else parts.shared_direction,
        "concentration": None if parts is None else parts.concentration,
        "close_pairs": None if parts is None else parts.close_pairs,
    }

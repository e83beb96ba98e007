"""From a matrix to its row of a report: the one place where the numbers of a `GroupEnergy` are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from hf_mhe.analysis.report.crowding import crowding_columns
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.energy import Potential, energy_score, pair_statistics


@dataclass(frozen=True)
class Measuring:
    """What is measured of each matrix, whatever it is the matrix of."""

    potential: Potential
    duplicate_cosine: float = 0.95


def group_row(
    matrix: Tensor,
    measuring: Measuring,
    *,
    name: str,
    kind: str,
    role: str,
    parameters: Sequence[str] = (),
    stack: str | None = None,
) -> GroupEnergy:
    """The row of one matrix `(n, d)`: what is measured of it under the names that its columns have, and what it is.

    Raises:
        MHEError: wrong rank or dtype, a value that is not finite, or fewer than two rows with a direction.
    """
    pairs = pair_statistics(matrix, measuring.potential, duplicate_cosine=measuring.duplicate_cosine)
    meaning = energy_score(pairs.energy, pairs.n, pairs.d, measuring.potential)
    wanted = {each.name for each in fields(GroupEnergy)}
    values = {
        each.name: getattr(source, each.name)
        for source in (pairs, meaning)
        for each in fields(source)
        if each.name in wanted
    }
    values |= {
        "name": name,
        "kind": kind,
        "role": role,
        "stack": stack,
        "parameters": tuple(parameters),
        "mean_nearest_cosine": float(pairs.nearest_cosine.double().mean()),
        "nearest_pair": (int(pairs.nearest_pair[0]), int(pairs.nearest_pair[1])),
        "dead": len(pairs.dead),
        "dead_rows": tuple(int(row) for row in pairs.dead),
        "histogram": tuple(int(count) for count in pairs.histogram.tolist()),
    }
    values |= crowding_columns(pairs, measuring.potential, measuring.duplicate_cosine)
    return GroupEnergy(**values)

"""From a matrix to its row of a report: the one place where the numbers of a `GroupEnergy` are put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_mhe.analysis.as_matrix import as_matrix, as_names
from hf_mhe.analysis.checkpoint.reader import check_finite
from hf_mhe.analysis.report.crowding_columns import crowding_columns
from hf_mhe.analysis.report.group_energy import GroupEnergy
from hf_mhe.analysis.report.tokens import Vocabulary
from hf_mhe.analysis.report.variant import variant_of
from hf_mhe.energy import VARIANTS, PairStatistics, Potential, energy_score, pair_statistics
from hf_mhe.energy.near_duplicates import check_duplicate_cosine, check_max_pairs
from hf_mhe.energy.spectrum import spectrum as spectrum_of
from hf_mhe.errors import MHEError
from hf_mhe.extras import require_extra

KIND = "matrix"
"""The kind of what is no layer of a model."""


@dataclass(frozen=True)
class Measuring:
    """What is measured of each matrix, whatever it is the matrix of."""

    potential: Potential
    duplicate_cosine: float = 0.95
    max_pairs: int = 20
    spectrum: bool = False
    variants: bool = False


Describe = Callable[[Tensor, PairStatistics], Vocabulary | None]


def group_row(
    matrix: Tensor,
    measuring: Measuring,
    *,
    name: str,
    kind: str,
    role: str,
    parameters: Sequence[str] = (),
    stack: str | None = None,
    apart: str | None = None,
    describe: Describe | None = None,
) -> GroupEnergy:
    """The row of one matrix `(n, d)`: what is measured of it under the names that its columns have, and what it is.

    `describe` says what the matrix is made of, if it is a vocabulary.

    Raises:
        MHEError: wrong rank or dtype, a value that is not finite, or fewer than two rows with a direction.
    """
    variants = VARIANTS if measuring.variants else ()
    pairs = pair_statistics(
        matrix,
        measuring.potential,
        duplicate_cosine=measuring.duplicate_cosine,
        max_pairs=measuring.max_pairs,
        variants=variants,
    )
    meaning = energy_score(pairs.energy, pairs.n, pairs.d, measuring.potential)
    found: list[Any] = [pairs, meaning]
    if measuring.spectrum:
        found.append(spectrum_of(matrix))
    wanted = {each.name for each in fields(GroupEnergy)}
    values = {
        each.name: getattr(source, each.name) for source in found for each in fields(source) if each.name in wanted
    }
    values |= {
        "name": name,
        "kind": kind,
        "role": role,
        "stack": stack,
        "apart": apart,
        "variants": tuple(variant_of(pairs, potential) for potential in variants),
        "parameters": tuple(parameters),
        "mean_nearest_cosine": float(pairs.nearest_cosine.double().mean()),
        "nearest_pair": (int(pairs.nearest_pair[0]), int(pairs.nearest_pair[1])),
        "dead": len(pairs.dead),
        "dead_rows": tuple(int(row) for row in pairs.dead),
        "near_dead": len(pairs.near_dead),
        "near_dead_rows": pairs.near_dead,
        "histogram": tuple(int(count) for count in pairs.histogram.tolist()),
    }
    if pairs.coincident and math.isfinite(meaning.expected):
        # The energy of the other pairs stands beside it; all of them together have an infinite one.
        values |= {"score": math.inf, "z": math.inf}
    values |= crowding_columns(pairs, measuring.potential, measuring.duplicate_cosine)
    if describe is not None and (vocabulary := describe(matrix, pairs)) is not None:
        values |= {"vocabulary": vocabulary, "row_names": vocabulary.texts()}
    return GroupEnergy(**values)


def measure(
    matrix: Any,
    *,
    names: Sequence[str] | None = None,
    s: float = 2.0,
    distance: str = "euclidean",
    space: str = "full",
    duplicate_cosine: float = 0.95,
    max_pairs: int = 20,
    spectrum: bool = False,
    variants: bool = False,
    name: str = "matrix",
) -> GroupEnergy:
    """Measure how redundantly the rows of any matrix point: sentence embeddings, codes, prototypes, hidden states.

    The same numbers as those of a layer in `analyze`; the kind of the row is "matrix".

    Example:
        >>> import torch, hf_mhe
        >>> generator = torch.Generator().manual_seed(0)
        >>> vectors = torch.randn(100, 16, generator=generator)
        >>> vectors[7] = 2 * vectors[3]
        >>> found = hf_mhe.measure(vectors)
        >>> found.n, found.d, found.coincident, found.nearest_pair
        (100, 16, 1, (3, 7))

    Args:
        matrix: `(n, d)`, a vector a row, n and d at least 2: a `torch.Tensor` of any floating dtype, on any device, an
            array of numpy or what turns into one, a sequence of vectors, or a column of `datasets`.
        names: What the rows are called, a text each. Those of the rows that other fields name (`duplicate_pairs`,
            `clusters`, `nearest_pair`, `dead_rows`) are kept in `row_names`.
        s: Exponent of the energy, as `distance` and `space` in `analyze`.
        distance: "euclidean" or "angular".
        space: "full", or "half", where a vector and its mirror image count alike.
        spectrum: Also measure the spectral norm and the ranks, from the singular values.
        variants: Also measure the paper's twelve potentials, in the same walk.
        duplicate_cosine: Pairs whose cosine reaches it, in (0, 1], are counted as near-duplicates.
        max_pairs: How many near-duplicate pairs to list, the closest first.
        name: What the matrix is called, in the result and in errors.

    Raises:
        MHEError: `matrix` is no such matrix, has a NaN or an infinity, or fewer than two rows that are not zero;
            `names` are not a text for each row; an option is out of its range.

    Source: as `analyze`; Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, arXiv:1805.09298.
    """
    potential = Potential(s, distance, space)  # type: ignore[arg-type]
    measuring = Measuring(
        potential, check_duplicate_cosine(duplicate_cosine), check_max_pairs(max_pairs), spectrum, variants
    )
    if not isinstance(name, str) or not name:
        raise MHEError(f"name must be a text that is not empty; got {name!r}")
    rows = as_matrix(matrix, name)
    row_names = as_names(names, len(rows), name)
    check_finite(rows, name)
    try:
        found = group_row(rows, measuring, name=name, kind=KIND, role="hidden")
    except MHEError as error:
        raise MHEError(f"{name}: {error}") from error
    if row_names is None:
        return found
    mentioned = {row for i, j, _ in found.duplicate_pairs for row in (i, j)}
    mentioned.update(*found.clusters, found.nearest_pair, found.dead_rows, found.near_dead_rows)
    return replace(found, row_names={row: row_names[row] for row in sorted(mentioned)})


def measurement_path() -> str:
    """The folder that `evaluate.load` takes, offline, for the measurement `hyperspherical_energy`.

    `evaluate.load(hf_mhe.measurement_path()).compute(data=vectors)` is `measure(vectors).to_dict()`.

    Raises:
        MHEError: the library `evaluate` is not installed.
    """
    require_extra("the measurement of evaluate", "integrations", "evaluate", "datasets")
    return str(Path(__file__).resolve().parent / "measurement" / "hyperspherical_energy")

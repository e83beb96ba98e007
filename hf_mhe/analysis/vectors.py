"""Vectors in a file that is no checkpoint: an array of numpy, or a column of a dataset; read without running anything.

Note [Files of vectors]. A `.npy` file is mapped, and never unpickled. A dataset that was saved to disk is opened by
`datasets`, which maps it; of a Parquet file one column is read, in the precision that it has. The numbers of JSON
lines have none, and are read as float32: they are as a rule float32 printed with some ten digits, and in float64 two
vectors that point the same way would differ in the eleventh, with an energy of 1e17 for a pair that coincides.
Rejected: `datasets.load_dataset`, which would write a copy of a file that is read once into its cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_mhe.analysis.as_matrix import as_matrix, holds_vectors, of_arrow
from hf_mhe.analysis.checkpoint.reader import check_finite
from hf_mhe.analysis.measure import KIND
from hf_mhe.errors import MHEError
from hf_mhe.extras import require_extra
from hf_mhe.neurons import Coverage, NeuronGroup
from hf_mhe.stand_ins import other_format, stand_in
from hf_mhe.text import listed

if TYPE_CHECKING:
    from torch import Tensor

_JSON_LINES = (".jsonl", ".ndjson")
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # what save_to_disk writes


class Vectors(NamedTuple):
    """One matrix from a file, as a model of one group."""

    source: str
    coverage: Coverage
    matrix: Callable[[NeuronGroup], Tensor]


def find_vectors(source: object, column: str | None) -> Vectors | None:
    """The vectors that a path leads to; None where it is no file of vectors.

    Args:
        source: A path: `.npy`, `.parquet`, `.jsonl`, `.ndjson`, or a folder that `Dataset.save_to_disk` wrote.
        column: Of a dataset; may be None where only one column has vectors.

    Raises:
        MHEError: it is one and cannot be read, has no such column or none of vectors; or a `column` was given for
            something else.
    """
    path = Path(source) if isinstance(source, (str, os.PathLike)) and os.fspath(source) else None
    read = None if path is None else _reader(path)
    if path is None or read is None:
        if column is not None:
            named = type(source).__name__ if path is None else path
            raise MHEError(f"column {column!r} was given for {named}: only a dataset on disk has columns")
        return None
    if not path.exists():
        raise MHEError(f"there is no file {path}")
    name, matrix = read(path, column)
    check_finite(matrix, f"{path}: {name}")
    n, d = matrix.shape
    group = NeuronGroup(name, KIND, "hidden", n, d, (name,), module=name)
    return Vectors(str(source), Coverage([group], {}), lambda _: matrix)


def _reader(path: Path) -> Callable[[Path, str | None], tuple[str, Tensor]] | None:
    if path.is_dir():
        return _dataset if (path / _STATE).is_file() or (path / _SPLITS).is_file() else None
    by_suffix = {".npy": _npy, ".parquet": _parquet, **dict.fromkeys(_JSON_LINES, _json_lines)}
    return by_suffix.get(path.suffix.lower())


def _npy(path: Path, column: str | None) -> tuple[str, Tensor]:
    import numpy as np

    if column is not None:
        raise MHEError(f"column {column!r} was given for {path}: an array of numpy has no columns")
    start = _start(path)
    if start.startswith(b"PK"):
        raise MHEError(f"{path} holds several arrays (.npz): save the one that is meant with numpy.save")
    if not start.startswith(b"\x93NUMPY"):
        raise MHEError(f"{path} is {other_format(start) or 'no array of numpy'}: numpy.save writes what is right")
    try:
        # "c": changes would stay in memory, and there are none.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MHEError(f"{path} cannot be read as an array of numpy: {_line(error)}") from error
    return path.stem, as_matrix(array, str(path))


def _dataset(path: Path, column: str | None) -> tuple[str, Tensor]:
    require_extra("a dataset on disk", "quickstart", "datasets")
    import datasets
    import pyarrow as pa

    if not (path / _STATE).is_file():
        splits = sorted(part.name for part in path.iterdir() if (part / _STATE).is_file())
        raise MHEError(f"{path} is a dataset of several splits: give the folder of one ({listed(splits) or 'none'})")
    try:
        table = datasets.load_from_disk(str(path)).with_format("arrow")
        schema = table.data.schema
        name = _column(path, column, dict(zip(schema.names, schema.types, strict=True)))
        found = table.select_columns([name])[:][name]
    except MHEError:  # a ValueError too
        raise
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise MHEError(f"{path} cannot be read as a dataset: {_line(error)}") from error
    return name, _matrix(found, path, name)


def _parquet(path: Path, column: str | None) -> tuple[str, Tensor]:
    require_extra("a Parquet file", "quickstart", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    _start(path)
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            name = _column(path, column, dict(zip(schema.names, schema.types, strict=True)))
            found = file.read(columns=[name]).column(name)
    except (OSError, pa.ArrowException) as error:
        raise MHEError(f"{path} cannot be read as a Parquet file: {_line(error)}") from error
    return name, _matrix(found, path, name)


def _json_lines(path: Path, column: str | None) -> tuple[str, Tensor]:
    import numpy as np

    _start(path)
    rows: list[Any] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise MHEError(f"{path}: line {number} is no object of columns but {line.strip():.40}")
                if column is None:
                    column = _only(path, {name: _is_vector(value) for name, value in row.items()})
                if column not in row:
                    raise MHEError(f"{path}: line {number} has no {column!r}; it has {listed(map(repr, row))}")
                if not _is_vector(row[column]):
                    raise MHEError(f"{path}: line {number}: {column!r} is {row[column]!r:.60}, no list of numbers")
                rows.append(np.array(row[column], dtype=np.float32))
    except MHEError:  # a ValueError too
        raise
    except (OSError, ValueError, OverflowError, RecursionError) as error:  # of the text's encoding and of JSON too
        raise MHEError(f"{path} cannot be read as JSON lines: {_line(error)}") from error
    if column is None:
        raise MHEError(f"{path} is empty: a line for each vector is right")
    return column, as_matrix(rows, f"{path}: column {column!r}")


def _is_vector(value: object) -> bool:
    return isinstance(value, list) and all(type(number) in (int, float) for number in value)


def _column(path: Path, column: str | None, types: dict[str, Any]) -> str:
    """The column that is meant, by the types of all."""
    if column is None:
        return _only(path, {name: holds_vectors(kind) for name, kind in types.items()})
    if column not in types:
        raise MHEError(f"{path} has no column {column!r}; it has {listed(map(repr, types))}")
    return column


def _only(path: Path, is_vector: dict[str, bool]) -> str:
    found = [name for name, fits in is_vector.items() if fits]
    if len(found) != 1:
        among = f"{len(found)} ({listed(map(repr, found))})" if found else f"none of {listed(map(repr, is_vector))}"
        raise MHEError(f"{path}: which column has the vectors? {among} could be; say it with column (--column NAME)")
    return found[0]


def _matrix(column: Any, path: Path, name: str) -> Tensor:
    what = f"{path}: column {name!r}"
    return as_matrix(of_arrow(column, what), what)


def _start(path: Path) -> bytes:
    """The first bytes of a file, which are not those of a pointer to it or of a web page."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise MHEError(f"{path} cannot be read: {_line(error)}") from error
    other = stand_in(start)
    if other is not None:
        raise MHEError(f"{path} is {other}")
    return start


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

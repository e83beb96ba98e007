"""What a user holds as vectors, whatever library it is from, as one matrix: a vector a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_mhe.errors import MHEError
from hf_mhe.neurons.group import is_dtensor

_NEEDED = "a two-dimensional matrix of floating-point numbers, one vector a row"


def as_matrix(given: object, what: str, *, least: int = 2) -> Tensor:
    """The vectors as a tensor `(n, d)`, n >= `least`, in their own precision, on their own device, without a gradient.

    Takes a tensor, an array of numpy or what turns into one, a sequence of vectors (lists, arrays, tensors), or a
    column of `datasets`. Nothing is copied where torch can look at the memory.

    Raises:
        MHEError: names `what`, and says what it is instead: of another rank, dtype or length, empty, without values.
    """
    if isinstance(given, Tensor):
        matrix = given.detach()
    elif _is_datasets_column(given):
        matrix = of_arrow(_arrow_column(given), what)
    elif isinstance(given, (str, bytes, Mapping)) or hasattr(given, "column_names"):
        one = "one of its columns, such as data['embedding']" if hasattr(given, "column_names") else _NEEDED
        raise MHEError(f"{what} is of type {type(given).__name__}: give {one}")
    elif np.ma.is_masked(given):  # numpy would show what lies under the mask
        raise MHEError(f"{what} has masked values: fill them, or leave their rows out")
    elif hasattr(given, "__array__"):
        matrix = _of_array(np.asarray(given), what)
    elif isinstance(given, Sequence):
        matrix = _of_rows(list(given), what)
    else:
        raise MHEError(f"{what} is of type {type(given).__name__}: give {_NEEDED}")
    return _checked(matrix, what, least)


def as_names(names: object, rows: int, what: str) -> tuple[str, ...] | None:
    """What the rows are called, a text each; None where they have no names.

    Raises:
        MHEError: not as many texts as there are rows, or something else than texts.
    """
    if names is None:
        return None
    if isinstance(names, (str, bytes)) or not hasattr(names, "__iter__") or not hasattr(names, "__len__"):
        raise MHEError(f"names of {what}: a list of {rows} texts is right, one for each row; got {names!r:.80}")
    found = list(names)
    if len(found) != rows:
        raise MHEError(f"names of {what}: {len(found)} were given for {rows} rows")
    for row, name in enumerate(found):
        if not isinstance(name, str):
            raise MHEError(f"names of {what}: the name of row {row} is {name!r:.80}, of type {type(name).__name__}")
    return tuple(map(str, found))


def of_arrow(column: Any, what: str) -> Tensor:
    """A column of vectors in Arrow's memory (a chunked array of lists of floats) as a matrix.

    Raises:
        MHEError: another type, a missing row or value, rows of different lengths.
    """
    import pyarrow.compute as pc

    kind = column.type
    if not holds_vectors(kind):
        raise MHEError(f"{what} has the type {kind}: vectors, lists of floating-point numbers, are right")
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise MHEError(f"{what}: row {row} has no vector ({column.null_count} of {len(column)} rows)")
    lengths = pc.list_value_length(column).to_numpy()
    _check_lengths(lengths, what)
    parts, first = [], 0
    for chunk in column.chunks:
        values = chunk.flatten()
        if values.null_count:
            row = first + pc.index(values.is_null(), True).as_py() // int(lengths[0])
            raise MHEError(f"{what}: row {row} has a missing value in its vector")
        parts.append(values.to_numpy(zero_copy_only=False))
        first += len(chunk)
    flat = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind.value_type.to_pandas_dtype()), *parts])
    return _of_array(flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0), what)


def holds_vectors(kind: Any) -> bool:
    """Whether a type of Arrow is that of lists of floating-point numbers."""
    import pyarrow as pa

    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def _is_datasets_column(given: object) -> bool:
    """Whether it is a column of a `datasets.Dataset` whose values are as they are stored."""
    source: Any = getattr(given, "source", None)
    if type(given).__module__.partition(".")[0] != "datasets" or not hasattr(source, "with_format"):
        return False
    return bool(source.format["type"] != "custom")  # a function of the user's makes the values


def _arrow_column(column: Any) -> Any:
    return column.source.with_format("arrow", columns=[column.column_name])[:][column.column_name]


def _of_array(array: np.ndarray[Any, Any], what: str) -> Tensor:
    if array.dtype == object and array.ndim == 1:  # a pandas column of vectors
        return _of_rows(list(array), what)
    if array.dtype.name in ("bfloat16", "float128", "float96", "longdouble"):  # which torch does not take from numpy
        array = array.astype(np.float32 if array.dtype.name == "bfloat16" else np.float64)
    if array.dtype.kind != "f":
        raise MHEError(f"{what} is an array of {array.dtype}: {_NEEDED}, is right")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    # torch warns of memory that it could write to and must not.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _of_rows(rows: list[Any], what: str) -> Tensor:
    if any(isinstance(row, Tensor) for row in rows):
        for at, row in enumerate(rows):
            if not isinstance(row, Tensor) or row.dim() != 1:
                shape = tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__
                raise MHEError(f"{what}: row {at} is no vector ({shape}), others are tensors")
        _check_lengths([len(row) for row in rows], what)
        return torch.stack([row.detach() for row in rows])
    arrays = []
    for at, row in enumerate(rows):
        try:
            array = np.asarray(row)
        except ValueError as error:  # lists within it of different lengths
            raise MHEError(f"{what}: row {at} is no vector: {error}") from error
        if array.ndim != 1 or array.dtype.kind not in "fiu":
            found = f"of shape {array.shape}" if array.dtype.kind in "fiu" else f"{row!r:.80}"
            raise MHEError(f"{what}: row {at} is {found}; a vector of numbers is right")
        arrays.append(array)
    _check_lengths([len(array) for array in arrays], what)
    dtype = np.result_type(*{array.dtype for array in arrays}) if arrays else np.dtype(float)
    # Whole numbers in a list are numbers; in an array they are codes as often as not.
    matrix = np.stack(arrays).astype(dtype if dtype.kind == "f" else np.float64) if arrays else np.empty((0, 0))
    return _of_array(matrix, what)


def _check_lengths(lengths: Any, what: str) -> None:
    for row, length in enumerate(lengths):
        if length != lengths[0]:
            raise MHEError(f"{what}: row {row} has {length} numbers, row 0 has {lengths[0]}")


def _checked(matrix: Tensor, what: str, least: int) -> Tensor:
    shape = tuple(matrix.shape)
    if matrix.dim() != 2:
        hint = {1: "it is one vector", 0: "it is one number"}.get(matrix.dim(), "flatten(0, -2) makes one of it")
        raise MHEError(f"{what} has shape {shape}: {_NEEDED}, is right; {hint}")
    if not matrix.dtype.is_floating_point:
        raise MHEError(f"{what} is a tensor of {str(matrix.dtype).removeprefix('torch.')}: {_NEEDED}, is right")
    if matrix.layout != torch.strided:
        raise MHEError(f"{what} is stored as {matrix.layout}: give it as matrix.to_dense()")
    if matrix.is_meta:
        raise MHEError(f"{what} of shape {shape} is on the meta device and has no values")
    if is_dtensor(matrix):
        raise MHEError(f"{what} of shape {shape} is a DTensor shard: give it as matrix.full_tensor()")
    if shape[0] < least or shape[1] < 2:
        short = f"{shape[0]} row(s)" if shape[0] < least else "rows of one number"
        raise MHEError(f"{what} has shape {shape}: {short}, and directions need two rows of two numbers at least")
    if matrix.dtype.itemsize < 2:
        return _of_small_floats(matrix, what)
    return matrix.contiguous()  # sums in another order have other last digits


def _of_small_floats(matrix: Tensor, what: str) -> Tensor:
    """float8 in float32, which has all its values; smaller ones lie packed, several in an element."""
    if not str(matrix.dtype).startswith("torch.float8"):
        raise MHEError(f"{what} is stored as {matrix.dtype}, several numbers in one element: unpack it first")
    return matrix.float()

"""The dtypes of a safetensors header, as it spells them: their size, and what torch calls them.

Source: the format's description, https://huggingface.co/docs/safetensors. Dtypes that are not here are newer than this
table: sizes are not checked against them, and tensors of them are not read. torch is not imported for the table.
"""

from __future__ import annotations

from typing import NamedTuple


class StoredDtype(NamedTuple):
    """`bits` is the size of an element; `torch` what torch calls the dtype, None where no format is read from it.

    `plain` says that the values are numbers as they stand.
    """

    bits: int
    torch: str | None = None
    plain: bool = False


SAFETENSORS_DTYPES = {
    "F64": StoredDtype(64, "float64", plain=True),
    "F32": StoredDtype(32, "float32", plain=True),
    "F16": StoredDtype(16, "float16", plain=True),
    "BF16": StoredDtype(16, "bfloat16", plain=True),
    "F8_E4M3": StoredDtype(8, "float8_e4m3fn"),
    "F8_E5M2": StoredDtype(8, "float8_e5m2"),
    "F8_E8M0": StoredDtype(8),
    "F6_E2M3": StoredDtype(6),
    "F6_E3M2": StoredDtype(6),
    "F4": StoredDtype(4),
    "I64": StoredDtype(64, "int64"),
    "I32": StoredDtype(32, "int32"),
    "I16": StoredDtype(16, "int16"),
    "I8": StoredDtype(8, "int8"),
    "U64": StoredDtype(64),
    "U32": StoredDtype(32),
    "U16": StoredDtype(16),
    "U8": StoredDtype(8, "uint8"),
    "BOOL": StoredDtype(8, "bool"),
    "C64": StoredDtype(64),
}

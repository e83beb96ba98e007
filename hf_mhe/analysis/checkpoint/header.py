"""One .safetensors file: its header read and checked against the file's size, before any weight is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mhe.errors import MHEError
from hf_mhe.json_files import parse_json_object
from hf_mhe.safetensors_dtypes import SAFETENSORS_DTYPES
from hf_mhe.stand_ins import other_format, stand_in

# The format's own limit; a larger number means that the first eight bytes are not a safetensors header length.
_MAX_HEADER_BYTES = 100_000_000

# As much of a file's start as shows what else it is.
_LONGEST_MARK = 512


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor: its dtype as the format spells it ("BF16"), its shape, and its file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes; 0 for a dtype that is not known."""
        known = SAFETENSORS_DTYPES.get(self.dtype)
        return 0 if known is None else math.prod(self.shape) * known.bits // 8


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Names, dtypes and shapes of the tensors in one file, and its metadata, without reading any of their values.

    Source: the format's description, https://huggingface.co/docs/safetensors (eight bytes of header length, little
    endian; a JSON header; the data).

    Raises:
        MHEError: the file is shorter or longer than its header says, or is not a safetensors file at all.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(_LONGEST_MARK)
            # A header begins with a brace behind its length, whose own bytes may look like anything.
            other = None if start[8:9] == b"{" else stand_in(start) or other_format(start)
            if other is not None:
                raise MHEError(f"{path} is not a safetensors file: it is {other}")
            stream.seek(0)
            length = int.from_bytes(stream.read(8), "little")
            if size < 8:
                raise MHEError(f"{path} is truncated: it has {size} bytes, a safetensors file has at least 8")
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise MHEError(f"{path} is not a safetensors file: its first 8 bytes give no header length")
            if size < 8 + length:
                raise MHEError(
                    f"{path} is truncated or not a safetensors file: its header alone would take {8 + length} bytes, "
                    f"the file has {size}"
                )
            raw = stream.read(length)
    except OSError as error:
        raise MHEError(f"{path} cannot be read: {error.strerror or error}") from error
    header = parse_json_object(raw, f"{path} is not a safetensors file: its header", unique=True)
    tensors, data_bytes = _tensors(header, path)
    expected = 8 + length + data_bytes
    if size < expected:
        raise MHEError(f"{path} is truncated: it has {size} bytes, its header asks for {expected}")
    if size > expected:
        raise MHEError(f"{path} is damaged: it has {size} bytes, its header accounts for only {expected}")
    metadata = header.get("__metadata__")
    return tensors, {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _tensors(header: dict[str, Any], path: Path) -> tuple[dict[str, TensorInfo], int]:
    """The header's entries, and how many bytes of data they take together."""
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
            start, stop = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise MHEError(f"{path} is damaged: its header entry for tensor {name!r} is {entry!r:.80}") from error
        info = TensorInfo(dtype, shape, path)
        if dtype in SAFETENSORS_DTYPES and stop - start != info.nbytes:
            raise MHEError(
                f"{path} is damaged: tensor {name!r} of shape {shape} and dtype {dtype} takes {info.nbytes} bytes, "
                f"its header gives it {stop - start}"
            )
        tensors[name] = info
        end = max(end, stop)
    return tensors, end

"""The results of an experiment: a file with one JSON object a line, to which several processes append."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[3] / "results"
Record = dict[str, Any]


class Store:
    """`<folder>/<name>.jsonl`.

    A run that was killed while it wrote leaves a broken line: it is named in a warning, counts as not run, and the
    next append begins on a line of its own.
    """

    def __init__(self, name: str, folder: Path = RESULTS) -> None:
        self.path = folder / f"{name}.jsonl"

    def records(self) -> list[Record]:
        """The finished runs, in the order in which they ended; of two with one key the first."""
        if not self.path.is_file():
            return []
        found: dict[str, Record] = {}
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), 1):
            if not line.strip():
                continue
            record = _record(line)
            if record is None:
                warnings.warn(f"{self.path.name}, line {number} is broken and counts as not run", stacklevel=2)
                continue
            found.setdefault(record["key"], record)
        return list(found.values())

    def keys(self) -> set[str]:
        """The keys of the finished runs."""
        return {record["key"] for record in self.records()}

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line, whole, under a lock, and to the disk."""
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            end = os.lseek(file, 0, os.SEEK_END)
            if end and os.pread(file, 1, end - 1) != b"\n":
                line = b"\n" + line  # what stands before was cut off
            written = os.write(file, line)
            if written < len(line):
                raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written")
            os.fsync(file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)  # which gives the lock back


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:  # of the JSON, or of its UTF-8
        return None
    return record if isinstance(record, dict) and isinstance(record.get("key"), str) else None

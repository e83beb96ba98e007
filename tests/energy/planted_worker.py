"""A process of its own that looks for planted copies, and says what it found, in which time and memory."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import torch

from hf_mhe.energy import Potential, pair_statistics
from tests.energy.planted import plant


def kibibytes(what: str) -> int:
    """What the system says of this process: VmRSS is its memory now, VmHWM the most that it had.

    `getrusage` has the most too, but begins with what the process had that started this one.
    """
    return int(re.findall(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])


def main(n: int, d: int, space: str) -> None:
    potential = Potential(space=space)  # type: ignore[arg-type]
    pair_statistics(torch.randn(1000, d), potential)  # loads what is loaded on first use
    rows = plant(n, d, sizes=list(range(2, 51)) * (n // 10_000), space=space, seed=3)
    before = kibibytes("VmRSS")
    start = time.perf_counter()
    found = pair_statistics(rows.weight, potential)
    seconds = time.perf_counter() - start
    peak = kibibytes("VmHWM")  # of the whole process, so at least that of the call
    print(
        json.dumps(
            {
                "seconds": seconds,
                "mebibytes": (peak - before) / 1024,
                "clusters": found.clusters == rows.clusters,
                "pairs": [found.near_duplicates, rows.pairs],
                "distinct": [found.distinct, rows.distinct],
                "listed": found.duplicate_pairs,
                "first": rows.clusters[0],
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

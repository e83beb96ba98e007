"""What the statistics of a layer cost beside its energy alone, and the energies of further potentials beside those.

    python recipes/benchmarks/layer_statistics.py                     # the table in recipes/benchmarks/README.md
    python recipes/benchmarks/layer_statistics.py --shapes 1536x384 --rounds 51 --csv rows.csv --json rows.json

`value` is `hyperspherical_energy` without a gradient. `statistics` is `pair_statistics`: nearest neighbours,
histogram, near-duplicates, equivalent dimension, moments and energy in one walk. `both spaces` and `twelve` add
potentials to it. All are taken in turn, round after round, and each ratio is the median of its rounds, because a
shared machine's speed drifts. Beside the ratio of the time that passed stands that of the processor's time, of which
others take none; it does not see that a part runs on one thread only. `random` rows have small cosines only, `crowded`
ones a shared direction and few dimensions, as trained layers do, so that no shortcut for small cosines applies.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hf_mhe import hyperspherical_energy
from hf_mhe.energy import VARIANTS, Potential, pair_statistics

SHAPES = ("1536x384", "3072x768")
WEIGHTS = ("random", "crowded")
_OPERATIONS_A_ROUND = 3e8  # so that a small layer is measured several times a round
_MOST_CALLS = 20
Row = dict[str, str | float]


def rows_of(kind: str, n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Random rows, or rows of a trained layer's kind: a shared direction, and variances that fall off."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, d, generator=generator)
    if kind == "crowded":
        weight *= torch.linspace(1, d, d).rsqrt()
        weight += 0.1 * torch.randn(d, generator=generator)
    return weight.to(dtype)


def calls(weight: Tensor, potential: Potential) -> dict[str, Callable[[], object]]:
    """What is measured, the first of them what the others are compared with."""
    mirrored = Potential(potential.s, potential.distance, "half" if potential.space == "full" else "full")

    def value() -> None:
        with torch.no_grad():
            hyperspherical_energy(weight, potential.s, distance=potential.distance, space=potential.space)

    return {
        "value": value,
        "statistics": lambda: pair_statistics(weight, potential),
        "both spaces": lambda: pair_statistics(weight, potential, variants=(potential, mirrored)),
        "twelve": lambda: pair_statistics(weight, potential, variants=VARIANTS),
    }


def measure(weight: Tensor, potential: Potential, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds that passed and seconds of the processor, of each call, by round."""
    measured = calls(weight, potential)
    n, d = weight.shape
    repeat = min(_MOST_CALLS, max(1, int(_OPERATIONS_A_ROUND / (n * n * d))))
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in measured}
    for turn in range(rounds + 1):
        for name, call in measured.items():
            passed, processor = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                call()
            passed, processor = time.perf_counter() - passed, time.process_time() - processor
            if turn:  # the first is the warm-up
                times[name][0].append(passed / repeat)
                times[name][1].append(processor / repeat)
    return times


def table(kind: str, weight: Tensor, potential: Potential, rounds: int) -> list[Row]:
    """The rows of one shape and kind of weight."""
    times = measure(weight, potential, rounds)

    def ratio(name: str, clock: int) -> float:
        pairs = zip(times[name][clock], times["value"][clock], strict=True)
        return round(statistics.median(some / alone for some, alone in pairs), 3)

    return [
        {
            "shape": "x".join(str(size) for size in weight.shape),
            "weight": kind,
            "measured": name,
            "ms": round(statistics.median(passed) * 1e3, 2),
            "to the value alone": ratio(name, 0),
            "processor's time": ratio(name, 1),
        }
        for name, (passed, _) in times.items()
    ]


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxD")
    parser.add_argument("--weights", nargs="+", default=WEIGHTS, choices=WEIGHTS)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float64"))
    parser.add_argument("--s", type=float, default=2.0)
    parser.add_argument("--distance", default="euclidean", choices=("euclidean", "angular"))
    parser.add_argument("--space", default="full", choices=("full", "half"))
    parser.add_argument("--csv", metavar="FILE", help="write the rows here as well")
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    potential = Potential(options.s, options.distance, options.space)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.dtype}, {potential.describe()}")
    rows: list[Row] = []
    for shape in options.shapes:
        n, d = (int(size) for size in shape.split("x"))
        for kind in options.weights:
            weight = rows_of(kind, n, d, getattr(torch, options.dtype))
            for row in table(kind, weight, potential, options.rounds):
                if not rows:
                    print("| " + " | ".join(row) + " |\n| --- | --- | --- | ---: | ---: | ---: |")
                rows.append(row)
                print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

"""Speed and memory of the exact walk against its floor and against the dense formula under autograd.

    python recipes/benchmarks/energy.py                      # the table in recipes/benchmarks/README.md
    python recipes/benchmarks/energy.py --shapes 3072x768 --variants 2-euclidean-full --rounds 9
    python recipes/benchmarks/energy.py --sweep --csv sweep.csv --figure sweep.png --before OTHER_CHECKOUT

The floor is the time of the matrix products alone, measured in the same process: `n^2 d` operations for the cosines
and `2 n^2 d` for the gradient, at the rate of one large product each. All figures of a row are taken in turn, round
after round, and each ratio is the median of its rounds, because a shared machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import sweep
import torch
import versions
from torch import Tensor

from hf_mhe import hyperspherical_energy

SHAPES = ("64x27", "384x384", "3072x768", "4096x1024", "8192x2048")
VARIANTS = tuple(
    f"{s}-{distance}-{space}" for distance in ("euclidean", "angular") for space in ("full", "half") for s in (2, 0, 1)
)


def seconds(call: Callable[[], object], repeat: int) -> float:
    """Mean wall time of `repeat` calls, device included."""
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeat


def dense_formula(weight: Tensor, s: float, distance: str, space: str) -> Tensor:
    """What one writes without this library, at its fastest: no mask, no index, the diagonal overwritten."""
    unit = torch.nn.functional.normalize(weight, dim=1)
    cos = (unit @ unit.T).fill_diagonal_(0)

    def of_chord(cos: Tensor) -> Tensor:
        square = 2 - 2 * cos
        return {0: lambda: -0.5 * torch.log(square), 1: square.rsqrt, 2: square.reciprocal}[int(s)]()

    def of_angle(cos: Tensor) -> Tensor:
        angle = torch.arccos(cos)
        return {0: lambda: -torch.log(angle), 1: angle.reciprocal, 2: lambda: 1 / angle.square()}[int(s)]()

    kernel = {"euclidean": of_chord, "angular": of_angle}[distance]
    value = kernel(cos) if space == "full" else kernel(cos) + kernel(-cos)
    return value.sum()


def floor_calls(unit: Tensor) -> list[tuple[float, Callable[[], object]]]:
    """The products of the walk, and how many times each counts: of the cosines symmetry leaves half."""
    n, d = unit.shape
    rows = min(n, max(1, (1 << 28) // n))  # at most 1 GiB of cosines
    part = unit[:rows]
    cos = torch.empty(rows, n, dtype=unit.dtype, device=unit.device).normal_()
    out = torch.empty(rows, d, dtype=unit.dtype, device=unit.device)
    scale = n / rows
    return [
        (0.5 * scale, lambda: torch.mm(part, unit.t(), out=cos)),
        (1.0 * scale, lambda: torch.mm(cos, unit, out=out)),
    ]


class Calls:
    """What a row of the table measures, of one shape and variant."""

    def __init__(self, n: int, d: int, variant: str, *, dtype: torch.dtype, device: str, dense: bool) -> None:
        s, distance, space = variant.split("-")
        weight = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(device, dtype).requires_grad_()
        options = {"distance": distance, "space": space}

        def exact() -> None:
            torch.autograd.grad(hyperspherical_energy(weight, float(s), **options), weight)

        def forward() -> None:
            with torch.no_grad():
                hyperspherical_energy(weight, float(s), **options)

        def rival() -> None:
            torch.autograd.grad(dense_formula(weight, float(s), distance, space), weight)

        cosines, gradient = floor_calls(torch.nn.functional.normalize(weight.detach(), dim=1))
        self._repeat = max(1, int(2e8 / (3 * n * n * d)))
        # In this order: what a call leaves in the caches is as foreign to the next one as that of another layer.
        self._calls = {"cosines": cosines, "exact": (1.0, exact), "gradient": gradient, "forward": (1.0, forward)}
        if dense:
            self._calls["dense"] = (1.0, rival)

    def turn(self) -> dict[str, float]:
        """Seconds of each, one after the other."""
        return {name: times * seconds(call, self._repeat) for name, (times, call) in self._calls.items()}


def measure(
    n: int, d: int, variant: str, *, rounds: int, dtype: torch.dtype, device: str, dense: bool
) -> dict[str, object]:
    """One row of the table."""
    calls = Calls(n, d, variant, dtype=dtype, device=device, dense=dense)
    turns = [calls.turn() for _ in range(rounds + 1)][1:]  # the first is the warm-up
    times = {name: [turn[name] for turn in turns] for name in turns[0]}
    ratio = lambda top, bottom: statistics.median(a / b for a, b in zip(top, bottom, strict=True))  # noqa: E731
    floor = [a + b for a, b in zip(times["cosines"], times["gradient"], strict=True)]
    return {
        "shape": f"{n}x{d}",
        "variant": variant,
        "ms": round(statistics.median(times["exact"]) * 1e3, 3),
        "floor_ms": round(statistics.median(floor) * 1e3, 3),
        "exact/floor": round(ratio(times["exact"], floor), 3),
        "forward/floor": round(ratio(times["forward"], times["cosines"]), 3),
        "dense/exact": round(ratio(times["dense"], times["exact"]), 2) if dense else None,
    }


def processor(device: str) -> str:
    """What the figures were measured on, as it calls itself."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def peak_memory(n: int, d: int, variant: str) -> int:
    """Bytes above the input that energy and gradient need at most; Linux, meant for a process of its own."""
    s, distance, space = variant.split("-")

    def step(weight: Tensor) -> None:
        torch.autograd.grad(hyperspherical_energy(weight, float(s), distance=distance, space=space), weight)

    step(torch.randn(600, 64).requires_grad_())  # libraries load their kernels at the first call
    weight = torch.randn(n, d).requires_grad_()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # start the high-water mark anew
    before = _resident("VmRSS")
    step(weight)
    return _resident("VmHWM") - before


def take_turns_of(options: argparse.Namespace) -> None:
    """Measure what comes on the standard input, a turn at a time."""
    dtype, made = getattr(torch, options.dtype), {}

    def turn(n: int, d: int, variant: str) -> versions.Turn:
        if (n, d, variant) not in made:
            made.clear()
            made[n, d, variant] = Calls(n, d, variant, dtype=dtype, device=options.device, dense=False)
        if n <= sweep.SMALL:
            made[n, d, variant].turn()  # another process had the caches and the processor since
        return made[n, d, variant].turn()

    versions.take_turns(turn, sys.stdin, sys.stdout)


def run_sweep(options: argparse.Namespace) -> None:
    """Print the ratios over n, and write them where asked."""
    shapes = [f"{n}x{d}" for d in sweep.D for n in sweep.N] if options.shapes == SHAPES else options.shapes
    sizes = [tuple(map(int, shape.split("x"))) for shape in shapes]
    threads = str(options.threads or torch.get_num_threads())
    given = ["--threads", threads, "--dtype", options.dtype, "--device", options.device]
    chip = processor(options.device)
    print(f"torch {torch.__version__}, {options.device} ({chip}), {threads} threads, {options.dtype}")
    heads = "n", "d", "variant", "version", "exact, ms", "exact / floor", "value, ms", "value / its floor"
    print("| " + " | ".join(heads) + " |")
    print("| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    measured = versions.versions(options.before, "energy.py", given)
    rows = sweep.sweep(measured, sizes, options.variants[0], options.rounds)
    for version in measured:
        version.end()
    if options.csv:
        sweep.write_csv(rows, options.csv)
    if options.figure:
        sweep.draw(rows, options.figure)


def main() -> None:
    """Print the table, or with `--memory` one number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxD")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="S-DISTANCE-SPACE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float64"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense formula out")
    parser.add_argument(
        "--memory", action="store_true", help="bytes of peak extra memory of the first shape and variant"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows here as well")
    parser.add_argument("--sweep", action="store_true", help="the first variant over n and d, in place of the table")
    parser.add_argument("--before", metavar="FOLDER", help="another checkout, measured in turn with this one (sweep)")
    parser.add_argument("--csv", metavar="FILE", help="the rows of the sweep")
    parser.add_argument("--figure", metavar="FILE", help="the ratios of the sweep over n")
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)  # a process of the sweep
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.before and not versions.is_checkout(options.before):
        parser.error(f"--before {options.before}: a checkout has a folder hf_mhe, and there is none")
    if options.turns or options.sweep:
        (take_turns_of if options.turns else run_sweep)(options)
        return
    if options.memory:
        n, d = (int(x) for x in options.shapes[0].split("x"))
        print(peak_memory(n, d, options.variants[0]))
        return

    chip, threads = processor(options.device), torch.get_num_threads()
    print(f"torch {torch.__version__}, {options.device} ({chip}), {threads} threads, {options.dtype}")
    heads = "shape", "variant", "exact, ms", "floor, ms", "exact / floor", "forward / its floor", "dense / exact"
    print("| " + " | ".join((*heads, "extra memory, MB")) + " |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for shape in options.shapes:
        n, d = (int(x) for x in shape.split("x"))
        for variant in options.variants:
            row = measure(
                n,
                d,
                variant,
                rounds=options.rounds,
                dtype=getattr(torch, options.dtype),
                device=options.device,
                dense=not options.no_dense,
            )
            if options.device == "cpu" and sys.platform == "linux":
                command = [sys.executable, __file__, "--memory", "--shapes", shape, "--variants", variant]
                row["extra_MB"] = round(int(subprocess.check_output(command, text=True)) / 1e6, 1)
            rows.append(row)
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

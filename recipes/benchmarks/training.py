"""What the penalty adds to a training step: exact, within a budget, as the dense formula in the loss, and divided.

    python recipes/benchmarks/training.py                          # the table in recipes/benchmarks/README.md
    python recipes/benchmarks/training.py --variants exact budget
    python recipes/benchmarks/training.py --variants divided --processes 2
    python recipes/benchmarks/training.py --shape llama-1b --device cuda --bf16 --variants exact budget
    python recipes/benchmarks/training.py --shape bert-base --batch 8 --before OTHER_CHECKOUT
    python recipes/benchmarks/training.py --quick                  # a look at whether it runs

The steps of all variants are taken in random order, round after round, on one model, because a shared machine's speed
drifts; each figure is the median over the rounds of the ratio to the plain step of the round. A budget computes other
groups at each step, so the mean is given too. The optimizer steps are counted from 1025 on, where the penalty is
seldom walked once more for the ratio of the gradients.

With `--before` two checkouts are measured in turn: the plain step, the exact penalty within a step, the penalty with
its gradient alone, and the matrix products that are in it.

`divided` trains under DDP in `--processes` processes on CPU with one thread each, or on a GPU each: how long the
penalty takes the slower rank, beside what it takes one such process alone in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import versions
from energy import dense_formula, floor_calls, seconds
from shapes import SHAPES
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_mhe import MHEConfig, MHERegularizer

VARIANTS = ("exact", "budget", "dense", "divided")
FIRST_STEP = 1025
WEIGHTS = {"hidden_weight": 0.1, "output_weight": 0.1}
Row = dict[str, str]


class Bench:
    """One model, and a training step of it with each way to add a penalty."""

    def __init__(self, options: argparse.Namespace, *, distributed: bool = False) -> None:
        torch.manual_seed(0)
        model, inputs = SHAPES[options.shape](options.batch, options.length)
        self.device = torch.device(options.device, int(os.environ.get("LOCAL_RANK", 0)))
        if self.device.type == "cpu":
            self.device = torch.device("cpu")
        model = model.to(self.device, torch.bfloat16 if options.bf16 else torch.float32).train()
        self.model: nn.Module = DistributedDataParallel(model) if distributed else model
        self.inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        self.exact = MHERegularizer(self.model, MHEConfig(**WEIGHTS))
        self.exact.step = FIRST_STEP
        self.budget = self._budgeted(options.budget) if "budget" in options.variants and not distributed else None
        self.in_penalty = 0.0
        self.penalty = torch.zeros(())

    def _budgeted(self, share: float) -> MHERegularizer:
        regularizer = MHERegularizer(self.model, MHEConfig(**WEIGHTS, budget=share))
        regularizer.step = FIRST_STEP
        regularizer(self.model(**self.inputs).loss)  # here, before any other variant's forward pass, it counts a step
        return regularizer

    def step(self, variant: str) -> float:
        """Seconds of one optimizer step; those until the penalty is there are left in `in_penalty`."""
        start = self.now()
        loss = self.model(**self.inputs).loss
        before = self.now()
        if variant == "exact":
            loss = self.exact(loss)
        elif variant == "budget" and self.budget is not None:
            loss = self.budget(loss)
        elif variant == "dense":
            loss = loss + self._dense()
        self.in_penalty = self.now() - before
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.now() - start

    def whole_penalty(self) -> float:
        """Seconds of the exact penalty with its gradient, by this process alone."""
        start = self.now()
        self.penalty = self.exact.penalty()
        return self.now() - start

    def products(self) -> float:
        """Seconds of the matrix products that the exact penalty has at least."""
        total = 0.0
        for group in self.exact.groups:
            if group.n > 1:
                calls = floor_calls(torch.nn.functional.normalize(group.matrix().detach().float(), dim=1))
                total += sum(times * seconds(call, 1) for times, call in calls)
        return total

    def peak_memory(self, variant: str) -> float:
        """Bytes above what is held between two steps; CUDA only."""
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        self.step(variant)
        return torch.cuda.max_memory_allocated() - held

    def _dense(self) -> Tensor:
        total = torch.zeros((), device=self.device)
        for group in self.exact.groups:
            points = group.n if group.role == "output" else 2 * group.n
            space = "full" if group.role == "output" else "half"
            scale = (1 if space == "full" else 2) / (points * (points - 1))
            total = total + scale * dense_formula(group.matrix().float(), 2, "euclidean", space)
        return WEIGHTS["hidden_weight"] * total

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def one_process(options: argparse.Namespace) -> list[Row]:
    """What each variant adds to a step."""
    bench = Bench(options)
    names = ("plain", *(name for name in options.variants if name != "divided"))
    times: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0)
    for turn in range(options.rounds + 1):
        for name in shuffle.sample(names, len(names)):  # what a step leaves in the allocator, the next one gains
            seconds = bench.step(name)
            if turn:  # the first is the warm-up
                times[name].append(seconds)
    labels = {
        "plain": "none",
        "exact": "exact, every step",
        "budget": f"`budget={options.budget:g}`",
        "dense": "dense formula in the loss",
    }
    rows = []
    for name in names:
        added = [100 * (a / b - 1) for a, b in zip(times[name], times["plain"], strict=True)]
        rows.append(
            {
                "penalty": labels[name],
                "processes x threads": f"1 x {torch.get_num_threads()}",
                "step, s": f"{statistics.median(times[name]):.3f}",
                "added, median": "" if name == "plain" else f"{statistics.median(added):.1f} %",
                "added, mean": "" if name == "plain" else f"{statistics.mean(added):.1f} %",
                "penalty a rank": "",
            }
        )
        if bench.device.type == "cuda":
            rows[-1]["peak above the weights, MB"] = f"{bench.peak_memory(name) / 1e6:.0f}"
    if bench.budget is not None and bench.budget.budget is not None:
        exact = sum(3 * group.n * group.n * group.d for group in bench.exact.groups)
        counted = bench.budget.budget.step_operations or 0.0
        print(f"counted: {counted / 1e9:.3g} GFLOP a step, {exact / 1e9:.1f} GFLOP the exact penalty", file=sys.stderr)
    return rows


def take_turns_of(options: argparse.Namespace) -> None:
    """Measure a turn for each line on the standard input."""
    bench = Bench(options)

    def turn() -> versions.Turn:
        plain = bench.step("plain")
        exact = bench.step("exact")
        bench.whole_penalty()  # the one that is measured finds the caches as a penalty left them, and no step
        penalty = bench.whole_penalty()
        bench.penalty.backward()  # without, the next step would miss it, and warn
        bench.optimizer.zero_grad()
        return {"plain": plain, "exact": exact, "penalty": penalty, "products": bench.products()}

    versions.take_turns(turn, sys.stdin, sys.stdout)


def before_and_now(options: argparse.Namespace) -> list[Row]:
    """What the exact penalty costs in two checkouts."""
    given = ["--shape", options.shape, "--batch", str(options.batch), "--length", str(options.length)]
    given += ["--device", options.device, "--threads", str(options.threads or torch.get_num_threads())]
    measured = versions.versions(options.before, "training.py", given + ["--bf16"] * options.bf16)
    rounds = [[version.turn() for version in measured] for _ in range(options.rounds + 1)][1:]
    rows = []
    for version, turns in zip(measured, zip(*rounds, strict=True), strict=True):
        version.end()
        median = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        added = statistics.median(100 * (turn["exact"] / turn["plain"] - 1) for turn in turns)
        over = statistics.median(turn["penalty"] / turn["products"] for turn in turns)
        share = statistics.median(100 * turn["products"] / turn["plain"] for turn in turns)
        rows.append(
            {
                "exact penalty": version.name,
                "threads": str(options.threads or torch.get_num_threads()),
                "plain step, s": f"{median['plain']:.3f}",
                "added": f"{added:.1f} %",
                "penalty alone, ms": f"{1e3 * median['penalty']:.0f}",
                "penalty / its products": f"{over:.2f}",
                "products of a step": f"{share:.1f} %",
            }
        )
    return rows


def divided(options: argparse.Namespace) -> list[Row]:
    """The same under DDP with the work divided, and the penalty's time on the slowest rank beside one process's."""
    torch.distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
    bench = Bench(options, distributed=True)
    times: dict[str, list[float]] = {"plain": [], "exact": []}
    ratios, alone = [], []
    for turn in range(options.rounds + 1):
        taken = {}
        for name in times:
            torch.distributed.barrier()
            taken[name] = bench.step(name)
        slowest = torch.tensor(bench.in_penalty, device=bench.device)
        torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
        whole = torch.zeros((), device=bench.device)
        if torch.distributed.get_rank() == 0:  # the others wait
            whole += bench.whole_penalty()
        torch.distributed.all_reduce(whole)
        if turn:
            alone.append(float(whole))
            ratios.append(float(slowest / whole))
            for name, seconds in taken.items():
                times[name].append(seconds)
    # First the model: DDP, if the last to hold the group, ends gloo's threads while they wait for Python's lock.
    del bench
    torch.distributed.destroy_process_group()
    added = [100 * (a / b - 1) for a, b in zip(times["exact"], times["plain"], strict=True)]
    threads = f"{options.processes} x {torch.get_num_threads()}"
    plain = {
        "penalty": "none, DDP",
        "processes x threads": threads,
        "step, s": f"{statistics.median(times['plain']):.3f}",
    }
    exact = {
        "penalty": "exact, DDP, the work divided",
        "processes x threads": threads,
        "step, s": f"{statistics.median(times['exact']):.3f}",
        "added, median": f"{statistics.median(added):.1f} %",
        "added, mean": f"{statistics.mean(added):.1f} %",
        "penalty a rank": f"{statistics.median(ratios):.2f} of {1e3 * statistics.median(alone):.0f} ms alone",
    }
    return [plain, exact]


def launch_divided(processes: int) -> list[Row]:
    """`divided` in processes of its own, started with the arguments of this one."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, "--nproc_per_node", str(processes), __file__, *sys.argv[1:], "--rows", str(output)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        rows: list[Row] = json.loads(output.read_text())
    return rows


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * (len(heads) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row.get(head, "") for head in heads) + " |" for row in rows)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="minilm", choices=SHAPES)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=15, help="each takes one step of every variant")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--budget", type=float, default=0.02)
    parser.add_argument("--processes", type=int, default=2, help="of the variant divided")
    parser.add_argument("--threads", type=int, default=None, help="of the other variants")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two rounds of 2 x 16 tokens: figures without a meaning")
    parser.add_argument("--before", metavar="FOLDER", help="another checkout, whose exact penalty is measured in turn")
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)  # a process of --before
    parser.add_argument("--rows", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.batch, options.length = 2, 2, 16
    if options.rows:
        rows = divided(options)
        if os.environ["RANK"] == "0":
            Path(options.rows).write_text(json.dumps(rows))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.before and not versions.is_checkout(options.before):
        parser.error(f"--before {options.before}: a checkout has a folder hf_mhe, and there is none")
    if options.turns:
        take_turns_of(options)
        return
    if options.before:
        rows = before_and_now(options)
    else:
        rows = one_process(options) if set(options.variants) != {"divided"} else []
        rows += launch_divided(options.processes) if "divided" in options.variants else []
    print(
        f"{options.shape}, {options.batch} x {options.length} tokens, {'bfloat16' if options.bf16 else 'float32'}, "
        f"{options.device}, torch {torch.__version__}, medians of {options.rounds} rounds\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main()

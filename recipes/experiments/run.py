"""Run an experiment, or several in turn, or go on with one that was interrupted.

    python recipes/experiments/run.py growing_mlp                     # one process, one thread
    nice -n 19 python recipes/experiments/run.py growing_mlp --workers 4
    python recipes/experiments/run.py growing_mlp --plan              # what is left to do, and how long it will take
    python recipes/experiments/run.py growing_mlp --quick             # a few steps of every arm, kept nowhere

A finished run is a line of `recipes/results/NAME.jsonl`; it is not run again. Stop with Ctrl-C at any time: the runs
in progress are lost, nothing else. `--only ARM` and `--limit N` do a part.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch: a run is one thread, the cores are for runs
    os.environ[name] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from harness.data.images import MissingDataError  # noqa: E402
from harness.plan.choice import pending, planned  # noqa: E402
from harness.plan.experiment import Experiment, ExperimentError, Run, declared, find, label, make_run  # noqa: E402
from harness.runs.store import RESULTS, Store  # noqa: E402


def main() -> int:
    """Returns the exit status: 0 done, 2 bad input."""
    options = parse()
    try:
        experiments = [find(name) for name in options.names]
        for experiment in experiments:
            for arm in options.only:
                experiment.arm(arm)
        for experiment in experiments:
            one(experiment, options)
    except (ExperimentError, MissingDataError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    return 0


def one(experiment: Experiment, options: argparse.Namespace) -> None:
    """Do with one experiment what the options say."""
    if options.plan:
        say_plan(experiment, Store(experiment.name, options.results or RESULTS))
    elif options.quick:
        with tempfile.TemporaryDirectory() as scratch:
            quick(experiment, Store(experiment.name, options.results or Path(scratch)), options)
    else:
        work(experiment, Store(experiment.name, options.results or RESULTS), options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"of {', '.join(declared())}; several in turn")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--only", action="append", default=[], metavar="ARM", help="may be given several times")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="stop after so many runs")
    parser.add_argument("--plan", action="store_true", help="say what is left to do")
    parser.add_argument("--quick", action="store_true", help="a few steps of every arm on small data")
    parser.add_argument("--results", type=Path, default=None, help="folder of the JSON lines")
    options = parser.parse_args()
    if options.workers < 1 or (options.limit is not None and options.limit < 1):
        parser.error("--workers and --limit must be at least 1")
    return options


def work(experiment: Experiment, store: Store, options: argparse.Namespace) -> None:
    """Do what is pending, in the order of the plan, until nothing is or the limit is reached.

    What is pending is asked again at each step: the final runs of an arm follow from its tuning runs, and another
    runner may be at work on the same file.
    """
    left, started = options.limit, set()
    context = get_context("spawn")  # a forked process would inherit torch's threads
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        running: dict[Future[float], Run] = {}
        while True:
            due = [run for run in todo(experiment, store, options.only) if run.key not in started]
            while due and len(running) < options.workers and left != 0:
                run = due.pop(0)
                started.add(run.key)
                running[pool.submit(perform_and_keep, run, store)] = run
                left = None if left is None else left - 1
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                report(experiment, store, running.pop(future), future.result())


def todo(experiment: Experiment, store: Store, only: list[str]) -> list[Run]:
    return pending(experiment, store.records(), only)


def perform_and_keep(run: Run, store: Store) -> float:
    """In a worker: do a run and write its line. Returns the seconds."""
    from harness.runs.perform import perform

    record = perform(run)
    store.append(record)
    return float(record["seconds"])


def report(experiment: Experiment, store: Store, run: Run, seconds: float) -> None:
    records = store.records()
    result = next(record["result"] for record in records if record["key"] == run.key)
    shown = {key: result[key] for key in ("validation", "test") if result.get(key) is not None}
    figures = ", ".join(f"{key} {value:.2f}" for key, value in shown.items())
    where = label({**run.cell, **run.choice})
    print(
        f"{time.strftime('%H:%M:%S')} {len(records)} of {planned(experiment)}: {run.stage} seed {run.seed} {run.arm} "
        f"{where}: {figures}, {seconds:.1f} s{' DIVERGED' if result.get('diverged') else ''}",
        flush=True,
    )


def say_plan(experiment: Experiment, store: Store) -> None:
    records = store.records()
    done, total = len(records), planned(experiment)
    seconds = statistics.fmean(record["seconds"] for record in records) if records else None
    rest = (
        "" if seconds is None else f"; {seconds:.1f} s a run, {(total - done) * seconds / 60:.0f} minutes of one core"
    )
    print(f"{experiment.name}: {done} of {total} runs done{rest}")
    for run in pending(experiment, records)[:10]:
        print(f"  next: {run.stage} seed {run.seed} {run.arm} {label({**run.cell, **run.choice})}")


def quick(experiment: Experiment, store: Store, options: argparse.Namespace) -> None:
    """Every arm once, tuned or not, on small data for a few steps: whether it runs, and nothing else."""
    arms = [arm for arm in experiment.arms if not options.only or arm.name in options.only]
    cell, seed, done = experiment.cells()[0], experiment.final_seeds[0], store.keys()
    runs = [make_run(experiment, arm, cell, arm.trials()[0], "final", seed, quick=True) for arm in arms]
    for run in [run for run in runs if run.key not in done][: options.limit]:
        report(experiment, store, run, perform_and_keep(run, store))


if __name__ == "__main__":
    sys.exit(main())

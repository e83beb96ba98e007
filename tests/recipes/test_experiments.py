"""The experiments' harness: seeds are kept apart, runs resume, and the documents are what the runs say."""

from __future__ import annotations

import dataclasses
import json
import re
from multiprocessing import get_context
from pathlib import Path

import pytest
from harness.plan.choice import chosen, final_runs, pending, planned
from harness.plan.experiment import Arm, ExperimentError, declared, find, key_of, make_run, merged
from harness.runs.store import Store

from tests.recipes.toy_experiment import BETTER, RECIPES, RUN, figure, finished, lines, program, toy, tuned


def test_a_setting_is_chosen_by_its_mean_over_all_tuning_seeds() -> None:
    experiment = toy()
    records = tuned(experiment, figure)
    for arm in experiment.arms:
        assert chosen(experiment, arm, {}, records) == {"size": BETTER[arm.name]}
        missing = [each for each in records if each["config"]["arm"] != arm.name or each["config"]["seed"] == 0]
        assert chosen(experiment, arm, {}, missing) is None, "one tuning seed of two decided"
    level = tuned(experiment, lambda arm, size, seed: 50.0)
    assert chosen(experiment, experiment.arms[0], {}, level) == {"size": 1}, "of equals it is the first"


def test_final_runs_take_the_chosen_setting_on_fresh_seeds() -> None:
    experiment = toy()
    runs = list(final_runs(experiment, tuned(experiment, figure)))
    assert [(run.seed, run.arm) for run in runs] == [(s, a.name) for s in (10, 11, 12) for a in experiment.arms]
    assert {run.choice["size"] for run in runs if run.arm == "first"} == {1}
    assert {run.stage for run in runs} == {"final"}
    assert runs[0].settings == {"arm": "ours", "size": 2}


def test_what_is_done_is_not_pending_and_one_arm_can_go_ahead() -> None:
    experiment = toy()
    records = tuned(experiment, figure)
    assert len(pending(experiment, [])) == 12
    assert [run.seed for run in pending(experiment, records[:6])] == [1] * 6
    ours = [each for each in records if each["config"]["arm"] == "ours"]
    ahead = pending(experiment, ours, ["ours"])
    assert [(run.stage, run.arm) for run in ahead] == [("final", "ours")] * 3, "it waited for the others' tuning"
    everything = finished(experiment, records, lambda arm, seed: 1.0)
    assert pending(experiment, everything) == []
    assert len(everything) == planned(experiment) == 12 + 9


def test_an_unfair_plan_is_refused() -> None:
    with pytest.raises(ExperimentError, match="final runs need fresh ones"):
        toy(final_seeds=[1, 2])
    with pytest.raises(ExperimentError, match="same number of trials"):
        toy(arms=[*toy().arms, Arm("favoured", "", {}, {"size": [1, 2, 3]})])
    with pytest.raises(ExperimentError, match="no arm nobody"):
        toy(primary="nobody")
    with pytest.raises(ExperimentError, match="no tuning_seeds"):
        toy(tuning_seeds=[])


def test_a_key_is_of_what_is_computed_and_not_of_names() -> None:
    experiment = toy()
    arm = experiment.arms[0]
    run = make_run(experiment, arm, {}, {"size": 1}, "tune", 0)
    renamed = make_run(toy(name="other"), dataclasses.replace(arm, name="new name"), {}, {"size": 1}, "tune", 0)
    assert run.key == renamed.key
    others = [
        make_run(experiment, arm, {}, {"size": 2}, "tune", 0),
        make_run(experiment, arm, {}, {"size": 1}, "final", 0),
        make_run(experiment, arm, {}, {"size": 1}, "tune", 1),
        make_run(toy(task="starting"), arm, {}, {"size": 1}, "tune", 0),
    ]
    assert len({run.key, *(other.key for other in others)}) == 5
    assert key_of(json.loads(json.dumps(run.config()))) == key_of(run.config()), "JSON changed the key"


def test_a_dotted_setting_reaches_into_a_mapping_and_leaves_the_original_alone() -> None:
    base = {"grown": {"lr": 0.1, "epochs": 8}, "penalty": None}
    assert merged(base, {"grown.lr": 0.2}, {"new.size": 3}) == {
        "grown": {"lr": 0.2, "epochs": 8}, "penalty": None, "new": {"size": 3},
    }  # fmt: skip
    assert base["grown"] == {"lr": 0.1, "epochs": 8}
    with pytest.raises(ExperimentError, match=r"'penalty\.weight' goes through 'penalty'"):
        merged(base, {"penalty.weight": 1.0})


# The store.


def test_a_line_cut_off_by_a_kill_is_named_and_spoils_no_other(tmp_path: Path) -> None:
    store = Store("cut", tmp_path)
    store.append({"key": "a", "value": 1})
    whole = store.path.read_bytes()
    for cut in range(1, len(whole) - 1):  # without its last sign alone, a line is whole
        store.path.write_bytes(whole + whole.replace(b'"a"', b'"b"')[:cut])
        with pytest.warns(UserWarning, match=r"cut\.jsonl, line 2 is broken"):
            assert store.keys() == {"a"}
        store.append({"key": "c"})
        with pytest.warns(UserWarning, match="line 2 is broken"):
            assert store.keys() == {"a", "c"}


def test_a_key_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    store = Store("twice", tmp_path)
    for value in (1, 2):
        store.append({"key": "a", "value": value})
    assert store.records() == [{"key": "a", "value": 1}]


def append_many(folder: Path, worker: int, count: int) -> None:
    for number in range(count):
        Store("many", folder).append({"key": f"{worker}-{number}", "filling": "x" * 20_000})


def test_processes_that_append_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    context = get_context("fork")  # the workers touch nothing but files
    workers = [context.Process(target=append_many, args=(tmp_path, worker, 40)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Store("many", tmp_path).keys() == {f"{worker}-{number}" for worker in range(4) for number in range(40)}


# The runs themselves, for a few steps.


@pytest.mark.recipes
def test_a_quick_experiment_runs_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    arms = ["--only", "copied", "--only", "mhe_full", "--only", "srip"]
    program(RUN, "growing_mlp", "--quick", "--results", tmp_path, *arms, "--limit", 2)
    before = lines(tmp_path / "growing_mlp.jsonl")
    said = program(RUN, "growing_mlp", "--quick", "--results", tmp_path, *arms).stdout
    after = lines(tmp_path / "growing_mlp.jsonl")
    assert len(before) == 2
    assert after[:2] == before
    assert [each["config"]["arm"] for each in after] == ["mhe_full", "copied", "srip"]
    assert said.count("final seed") == 1, "a finished run was run again"
    for each in after:
        assert each["threads"] == 1
        assert each["result"]["base"]["validation"] == after[0]["result"]["base"]["validation"]
        assert {"commit", "versions", "host", "peak_memory", "seconds"} <= set(each)
        copies = each["result"]["energies"]["before"]
        assert copies["near_duplicates"] >= 448, "the copies are not there"
        assert (copies["coincident"] == 0) == (each["config"]["arm"] != "copied")
        assert len(each["result"]["curve"]) == 3


ALONE = ["names_tail"]  # for it needs a package; the others share programs, whose imports take as long as the runs
OTHERS = [name for name in declared() if name not in ALONE]


@pytest.mark.recipes
@pytest.mark.parametrize("names", [OTHERS[0::2], OTHERS[1::2], ALONE], ids="-".join)
def test_every_experiment_runs(names: list[str], tmp_path: Path) -> None:
    if names == ALONE:
        pytest.importorskip("babel")
    program(RUN, *names, "--quick", "--results", tmp_path)
    for name in names:
        found = lines(tmp_path / f"{name}.jsonl")
        arms = [arm.name for arm in find(name).arms]
        assert [each["config"]["arm"] for each in found] == arms, name
        for result in (each["result"] for each in found):
            assert result["diverged"] is None, name
            assert 0 <= result["test"] <= 100, name
            assert all(result[key] is not None for key in find(name).further), name
            assert result["energies"]["after"]["mean_score"] is not None, name
        # An arm does something of its own; equal cost differs by its length alone, which --quick takes away.
        own = [each for each in found if each["config"]["arm"] != "scratch_cost"]
        figures = {json.dumps(each["result"]["energies"]["after"]) for each in own}
        assert len(figures) == len(own), f"{name}: two arms did the same"


@pytest.mark.slow
def test_an_unknown_name_is_one_clear_line() -> None:
    said = program(RUN, "nothing", rc=2).stderr
    assert f"no experiment 'nothing'; declared: {', '.join(declared())}" in said
    said = program(RUN, "growing_mlp", "--only", "nobody", rc=2).stderr
    assert "growing_mlp has no arm 'nobody'; arms: mhe_full" in said
    assert "Traceback" not in said


ROOMS = ["data", "training", "measures", "models", "plan", "runs", "statistics", "tasks", "report"]


def test_a_room_of_the_harness_imports_those_before_it() -> None:
    harness = RECIPES / "experiments" / "harness"
    assert {path.name for path in harness.iterdir() if (path / "__init__.py").is_file()} == set(ROOMS)
    assert [path.name for path in harness.glob("*.py")] == ["__init__.py"]
    for path in harness.glob("*/*.py"):
        allowed = ROOMS[: ROOMS.index(path.parent.name) + 1]
        for room in re.findall(r"^ *(?:from|import) harness\.(\w+)", path.read_text(), re.MULTILINE):
            assert room in allowed, f"{path.relative_to(harness)} imports {room}"

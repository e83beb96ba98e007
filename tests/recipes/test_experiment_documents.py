"""The verdicts of experiments, and that the documents are what the runs say."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness.plan.choice import tuning_runs
from harness.plan.experiment import Arm, declared
from harness.report.document import block
from harness.report.evidence import of_claim, overview
from harness.report.markdown import places, replaced
from harness.statistics.summary import summarize

from tests.recipes.toy_experiment import RECIPES, TABLES, figure, finished, program, record, toy, tuned

# The verdicts.

SMALL = {10: 0.14, 11: 0.16, 12: 0.15}  # what ours has more than the second, by seed: far from zero at this spread


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("ahead", "other", "nothing", "verdict", "better"),
    [
        (15, 50, None, "confirmed", []),
        (-15, 50, None, "not found", ["second"]),
        (15, 99, None, "not found", ["first"]),  # above the best rival of the tuning, and below another
        (-15, 50, "second", "harmful", ["second"]),
        (15, 99, "first", "harmful", ["first"]),
        (15, 99, "second", "not found", ["first"]),
    ],
)
def test_a_verdict_is_about_the_best_rival_by_validation_and_hides_no_better_one(
    ahead: int, other: int, nothing: str | None, verdict: str, better: list[str]
) -> None:
    experiment = toy(nothing=nothing)

    def test(arm: str, seed: int) -> float:
        return {"ours": 70 + ahead / 0.15 * SMALL[seed], "second": 70.0, "first": other + seed / 100}[arm]

    summary = summarize(experiment, finished(experiment, tuned(experiment, figure), test))
    assert summary.best_rival == "second"
    assert (summary.verdict, summary.better) == (verdict, better)
    assert summary.comparisons["second"].mean == pytest.approx(ahead)
    assert ("Better than it by Holm's p" in block(summary)) == bool(better)


@pytest.mark.recipes
def test_a_verdict_waits_for_every_seed_of_every_arm() -> None:
    experiment = toy()
    records = finished(
        experiment, tuned(experiment, figure), lambda arm, seed: 80 + 100 * SMALL[seed] * (arm == "ours")
    )
    assert summarize(experiment, records).verdict == "confirmed"
    for missing in records[12:]:
        part = [each for each in records if each is not missing]
        summary = summarize(experiment, part)
        assert summary.verdict == "undecided"
        assert "Undecided: " in block(summary)
    assert "0 of 3 arms have their 3 fresh seeds" in block(summarize(experiment, records[:12]))
    assert "2 of 3 arms have their 3 fresh seeds" in block(summarize(experiment, records[:-1]))


def test_a_null_says_what_it_could_have_found() -> None:
    experiment = toy()
    records = finished(experiment, tuned(experiment, figure), lambda arm, seed: 80.0 + (seed * len(arm)) % 7)
    summary = summarize(experiment, records)
    assert summary.verdict == "not found"
    said = re.search(r"found a difference of (\S+) points with a probability of 80 %", block(summary))
    assert said is not None
    assert float(said[1]) == pytest.approx(summary.comparisons["second"].detectable, abs=0.005)


def test_an_outside_arm_is_compared_and_is_no_rival() -> None:
    experiment = toy(outside=["second"])
    summary = summarize(experiment, finished(experiment, tuned(experiment, figure), lambda arm, seed: 50.0 + seed))
    assert summary.best_rival == "first"
    assert set(summary.comparisons) == {"first", "second"}


# The documents.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ({"size": [1, 2], "grown.lr": [0.1, 0.2]}, [0.1, 0.2, 0.3, 0.4], "first (0.4)"),
        ({"size": [1, 2], "grown.lr": [0.1, 0.2]}, [0.1, 0.15, 0.2, 0.01], "first (0.01)"),
        ({"size": [1, 2], "grown.lr": [0.1, 0.5]}, [0.1, 0.2, 0.3, 0.4], None),  # between them is within reach
        ({"size": [1, 2, 3, 4]}, [0.1, 0.2, 0.3, 0.05], None),  # its only rate is what the rival chose
        ({"size": [1, 2, 3, 4]}, [0.1, 0.2, 0.3, 0.4], "first (0.4)"),
    ],
)
def test_a_rival_with_a_rate_that_mhe_could_not_choose_is_named(
    ours: dict[str, Any], theirs: list[float], said: str | None
) -> None:
    arms = [Arm("ours", "ours", {"arm": "ours"}, ours), Arm("first", "first", {"arm": "first"}, {"grown.lr": theirs})]
    experiment = toy(arms=arms, settings={"arm": "", "size": 0, "grown": {"lr": 0.05}})
    runs = list(tuning_runs(experiment))
    tuning = [record(run, float(run.choice.get("grown.lr") == theirs[-1])) for run in runs]
    summary = summarize(experiment, finished(experiment, tuning, lambda arm, seed: 80.0 + seed))
    assert summary.experiment.primary == "ours"
    assert ("beyond those that MHE chose from" in block(summary)) is (said is not None)
    assert said is None or said in block(summary)


@pytest.mark.parametrize("role", ["hidden", "output"])
def test_the_mechanism_is_that_of_the_neurons_that_the_experiment_is_about(role: str) -> None:
    vectors = {"role": "output", "spread": 7.25, "score": 0.125, "near_duplicates": 9}
    layer = {"role": "hidden", "spread": 2.75, "score": 1.625, "near_duplicates": 4}
    after = {"mean_spread": 2.75, "mean_score": 1.625, "near_duplicates": 4, "groups": [layer, vectors]}
    experiment = toy(role=role)
    records = finished(experiment, tuned(experiment, figure), lambda arm, seed: 80.0 + seed)
    for each in records:
        each["result"]["energies"]["after"] = after
    summary = summarize(experiment, records)
    shown, hidden = ("| 7.25 | 0.12 | 9.0 |", "2.75") if role == "output" else ("| 2.75 | 1.62 | 4.0 |", "7.25")
    assert shown in of_claim([summary])
    assert hidden not in of_claim([summary])
    assert ("| 9.0 | 0.12 |" if role == "output" else "| 4.0 | 1.62 |") in block(summary)


def test_the_documents_agree_with_the_runs() -> None:
    program(TABLES, "--check")


DOCUMENTS = ["README.md", "recipes/EVIDENCE.md", "recipes/results/TABLES.md"]


@pytest.mark.recipes
def test_a_number_that_is_not_the_runs_is_found_in_every_document(tmp_path: Path) -> None:
    """A table would go on saying what runs said that have been done again since."""
    shutil.copytree(RECIPES / "results", tmp_path / "recipes" / "results")
    for name in DOCUMENTS:
        shutil.copy(RECIPES.parent / name, tmp_path / name)
    ran = [name for name in declared() if (tmp_path / f"recipes/results/{name}.jsonl").is_file()]
    assert ran, "there is no result to check"
    tables = runpy.run_path(str(TABLES), run_name="tables")
    assert tables["check"](tmp_path) == []
    for name in DOCUMENTS:
        text = (tmp_path / name).read_text()
        first = text.index(": written by tables.py -->")
        number = re.search(r"\d+", text[first:])
        assert number, name
        place = first + number.start()
        (tmp_path / name).write_text(f"{text[:place]}9{text[place:]}")
        (said,) = tables["check"](tmp_path)
        assert said.startswith(f"{name}: the part ")
        (tmp_path / name).write_text(text)
    results = tmp_path / f"recipes/results/{ran[0]}.jsonl"
    kept = results.read_text().splitlines(keepends=True)
    results.write_text("".join(kept[:-1]))
    said = program(TABLES, "--check", "--root", tmp_path, rc=1).stderr
    assert f"TABLES.md: the part {ran[0]} is not what the JSON lines say" in said
    program(TABLES, "--root", tmp_path)
    assert tables["check"](tmp_path) == []
    results.write_text("".join(kept) + '{"key": "cut o')
    assert f"line {len(kept) + 1} is broken" in "".join(tables["check"](tmp_path))


@pytest.mark.slow
def test_a_document_without_a_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipes" / "results").mkdir(parents=True)
    for name in DOCUMENTS:
        (tmp_path / name).write_text("# Nothing\n")
    assert f"has no place for {', '.join(declared())}" in program(TABLES, "--root", tmp_path, rc=2).stderr
    every = "".join(f"<!-- {name}: written by tables.py -->\n<!-- end of {name} -->\n" for name in declared())
    (tmp_path / DOCUMENTS[2]).write_text(every)
    (tmp_path / DOCUMENTS[1]).write_text(every)
    assert "README.md has no place for" in program(TABLES, "--root", tmp_path, rc=2).stderr
    (tmp_path / DOCUMENTS[0]).write_text(every.replace("growing_mlp", "growing_mpl"))
    said = program(TABLES, "--root", tmp_path, rc=2).stderr
    assert "README.md has a place for growing_mpl, which the evidence does not report" in said
    with pytest.raises(ValueError, match="0 times"):
        replaced("# Nothing", "growing_mlp", "text")


def test_a_reader_sees_the_best_of_the_others_though_the_tuning_chose_another() -> None:
    """A line would say that MHE is far ahead of its best rival where that diverged, and hide the one that is above."""
    experiment = toy(nothing="second")
    level = {"ours": 70.0, "second": 40.0, "first": 80.0}
    records = finished(experiment, tuned(experiment, figure), lambda arm, seed: level[arm] + 10 * SMALL[seed])
    summary = summarize(experiment, records)
    assert summary.best_rival == "second"
    for said in (overview([summary]), of_claim([summary])):
        line = said.splitlines()[-1]
        assert "| +30.00 (+30.00 to +30.00) | -10.00 (-10.00 to -10.00), first |" in line
        assert line.endswith("| **not found** |")


def test_a_line_says_what_decides_an_experiment_why_and_what_it_costs() -> None:
    experiment = toy(nothing="second")
    level = {"ours": 3.0, "second": 2.0, "first": 1.0}
    records = finished(experiment, tuned(experiment, figure), lambda arm, seed: 80.0 + (seed * len(arm)) % 7)
    for each in records:
        spread = level[each["config"]["arm"]]
        after = {"mean_spread": spread, "mean_score": spread / 4, "near_duplicates": 5 * spread}
        each["result"] |= {"train_cpu_seconds": 10 * spread, "energies": {"after": after}}
    summary = summarize(experiment, records)
    detectable = f"{summary.comparisons['second'].detectable:.2f}"
    expected = f"| 3 | 2.00 → 3.00 | 0.50 → 0.75 | 10.0 → 15.0 | 1.50 × | **not found** ({detectable}) |"
    assert of_claim([summary]).splitlines()[-1].endswith(expected)
    without = summarize(toy(), records)  # nothing that does nothing
    assert "| 3 | 3.00 | 0.75 | 15.0 |  |" in of_claim([without])


def test_a_place_names_the_experiments_that_stand_in_it() -> None:
    text = "<!-- one two: written by tables.py -->\n<!-- end of one two -->\n<!-- three: written by tables.py -->"
    assert places(text) == ["one two", "three"]
    assert "\nboth\n" in replaced(text, "one two", "both")


def test_what_is_not_decided_gives_no_numbers_to_a_reader_in_haste() -> None:
    """The mean of two seeds would stand in the overview beside that of sixteen."""
    experiment = toy()
    records = finished(experiment, tuned(experiment, figure), lambda arm, seed: 50.0 + seed)
    assert overview([summarize(experiment, [])]).count("\n") == 1, "a line for what has not begun"
    line = overview([summarize(experiment, records[:-1])]).splitlines()[-1]
    assert line == "| Toy | test accuracy, % |  |  |  | undecided: 20 of 21 runs |"
    assert "Not run yet: 0 of 21 runs." in block(summarize(experiment, []))
    line = of_claim([summarize(experiment, records[:-1])]).splitlines()[-1]
    assert line == "| Toy | test accuracy, % |  |  |  |  |  |  |  |  | undecided: 20 of 21 runs |"
    table_alone = toy(primary=None, nothing="second")
    line = overview([summarize(table_alone, records[:-1])]).splitlines()[-1]
    assert line == "| Toy | test accuracy, % |  |  |  | undecided: 20 of 21 runs |"
    assert "0 of 2 above it and 0 below" in overview([summarize(table_alone, records)])

"""A report's order, summary, files and tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import statistics
from pathlib import Path

import pandas
import pytest
import torch
from torch import nn

import hf_mhe
from hf_mhe.analysis import EnergyReport
from hf_mhe.errors import MHEError


@pytest.fixture(scope="module")
def odd_report() -> EnergyReport:
    """A report with a group whose expectation diverges, one with a dead row, and one skipped parameter."""
    model = nn.ModuleDict({"flat": nn.Linear(2, 6), "wide": nn.Linear(9, 6), "one": nn.Linear(4, 1)})
    nn.init.zeros_(model["wide"].weight[3])
    return hf_mhe.analyze(model)


def test_the_most_crowded_comes_first(report: EnergyReport, odd_report: EnergyReport) -> None:
    """If this fails, the first line of a report is not the layer that needs attention."""
    for each in (report, odd_report):
        spreads = [group.spread for group in each.competing]
        assert spreads == sorted(spreads)
    assert odd_report["flat"].score is None


def test_neurons_that_do_not_compete_stay_apart(report: EnergyReport) -> None:
    """If this fails, kernels that never see the same input lead the list, or stop a check."""
    worst = report.groups[0]
    rows = [dataclasses.replace(group, apart="positions") if group is worst else group for group in report.groups]
    changed = dataclasses.replace(report, groups=rows)
    assert changed.groups == [*changed.competing, *changed.apart]
    assert [group.name for group in changed.competing] == [group.name for group in report.competing[1:]]
    assert {group.name for group in changed.apart} == {worst.name, *(group.name for group in report.apart)}
    summary = changed.summary
    assert (summary.groups, summary.apart) == (report.summary.groups - 1, report.summary.apart + 1)
    assert summary.most_crowded == report.competing[1].name
    assert summary.neurons == report.summary.neurons - worst.n
    assert summary.mean_spread > report.summary.mean_spread


def test_a_report_from_before_there_were_spreads(report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, a report that was published last year cannot be read, or shows numbers that it does not have."""
    new = {"equivalent_dimension", "spread", "equivalent_dimension_z", "verdict", "mean_cosine", "mean_square_cosine"}
    new |= {"shared_direction", "concentration", "close_pairs", "distinct", "clusters", "duplicate_pairs", "apart"}
    content = report.to_dict()
    content["groups"] = [{k: value for k, value in row.items() if k not in new} for row in content["groups"]]
    old = EnergyReport.from_dict(content)
    assert {group.spread for group in old.groups} == {None}
    scores = [group.score for group in old.groups]
    assert scores == sorted(scores, reverse=True), "without spreads the score says which layer needs attention"
    assert (old.summary.mean_spread, old.summary.most_crowded) == (None, None)
    assert old.summary.mean_score == pytest.approx(sum(scores) / len(scores))
    assert EnergyReport.load(old.save(tmp_path / "old.json")) == old, (
        "what is missing stays missing, and is no infinity"
    )
    assert "earlier version" in old.to_html()
    comparison = hf_mhe.compare(old, report)
    assert {row.verdict for row in comparison.rows} == {"unchanged"}
    assert comparison.summary.mean_spread_change is None
    comparison.to_html()


def test_orthogonal_neurons_have_an_infinite_spread_in_a_file_too(tmp_path: Path) -> None:
    """If this fails, the best layer that there is comes back from its file as one that was not measured."""
    layer = nn.Linear(64, 8)
    nn.init.zeros_(layer.weight)
    layer.weight.data.fill_diagonal_(1.0)
    report = hf_mhe.analyze(nn.Sequential(layer))
    assert report.groups[0].spread == math.inf
    assert EnergyReport.load(report.save(tmp_path / "r.json")).groups[0].equivalent_dimension == math.inf
    assert report.summary.mean_spread == math.inf
    assert "∞" in report.to_html()
    report.plot(tmp_path / "r.png")


def test_summary_adds_up(report: EnergyReport) -> None:
    """If this fails, the summary line says something else than the rows."""
    summary, groups = report.summary, report.competing
    scores = [group.score for group in groups]
    assert summary.groups == len(groups) == sum(role.groups for role in summary.by_role.values())
    assert (
        summary.neurons == sum(group.n for group in groups) == sum(role.neurons for role in summary.by_role.values())
    )
    assert summary.mean_score == pytest.approx(sum(scores) / len(scores))
    assert summary.median_score == statistics.median(scores)
    assert summary.most_redundant_score == report[summary.most_redundant].score == max(scores)
    assert (summary.most_crowded, summary.lowest_spread) == (groups[0].name, groups[0].spread)
    assert summary.mean_spread == pytest.approx(statistics.harmonic_mean([group.spread for group in groups]))
    assert summary.median_spread == statistics.median([group.spread for group in groups])
    assert summary.max_cosine == max(group.max_cosine for group in groups)
    assert summary.dead == 1
    # 90·24 word embeddings, positions and types apart; 2 × (4·24² + 2·24·40); pooler 24²; classifier 5·24
    assert summary.parameters == 90 * 24 + 2 * (4 * 24**2 + 2 * 24 * 40) + 24**2 + 5 * 24


@pytest.mark.parametrize("which", ["report", "odd_report"])
def test_a_saved_report_comes_back_equal(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """If this fails, a report loses or changes something on its way through a file."""
    report: EnergyReport = request.getfixturevalue(which)
    path = report.save(tmp_path / "deep" / "energy_report.json")
    assert EnergyReport.load(path) == report
    assert EnergyReport.from_dict(json.loads(path.read_text())).to_dict() == report.to_dict()


def test_json_is_strict(odd_report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, a report with an infinite expectation is no JSON for any program but Python."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    content = json.loads(odd_report.save(tmp_path / "r.json").read_text(), parse_constant=refuse)
    flat = next(row for row in content["groups"] if row["name"] == "flat")
    assert flat["expected"] is None
    assert flat["score"] is None
    assert odd_report["flat"].expected == math.inf


def test_a_second_analysis_writes_the_same_file(bert: nn.Module, tmp_path: Path) -> None:
    """If this fails, a report in version control changes although the weights did not."""
    first = hf_mhe.analyze(bert).save(tmp_path / "1.json").read_bytes()
    assert hf_mhe.analyze(bert).save(tmp_path / "2.json").read_bytes() == first


def test_a_write_that_fails_leaves_what_was_there(report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, a full disk or a bug while writing destroys the previous report, or leaves litter."""
    path = tmp_path / "report.json"
    path.write_text("the previous report")
    broken = dataclasses.replace(report, notes=(object(),))
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_text() == "the previous report"
    (tmp_path / "folder").mkdir()
    with pytest.raises(MHEError, match=r"folder cannot be written"):
        report.save(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "report.json"]


def test_written_files_are_readable_by_others(report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, a report written on a shared machine can be read by its author alone."""
    plain = tmp_path / "plain"
    plain.write_text("")
    assert report.save(tmp_path / "r.json").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "something"}, "'something'"),
        ({"format_version": 99}, "upgrade"),
        ({"groups": [{"name": "a"}]}, "group 'a' of the energy report has no 'kind'"),
        ({"groups": [3]}, "int"),
        ({"potential": None}, "malformed"),
    ],
)
def test_a_file_that_is_no_report_is_named(change: dict, told: str, report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, a wrong or newer file ends in a traceback, or is half understood."""
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(report.to_dict() | change))
    with pytest.raises(MHEError, match=r"odd\.json") as caught:
        EnergyReport.load(path)
    assert told in str(caught.value)


def test_wrong_types_in_a_row_are_named(report: EnergyReport) -> None:
    """If this fails, a text in the place of a number travels on until something far away breaks."""
    content = report.to_dict()
    content["groups"][0] = content["groups"][0] | {"energy": "high"}
    with pytest.raises(MHEError, match=r"energy = 'high'"):
        EnergyReport.from_dict(content)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    """If this fails, a mistyped report path ends in a traceback."""
    with pytest.raises(MHEError, match=r"none\.json cannot be read"):
        EnergyReport.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"format": ')
    with pytest.raises(MHEError, match=r"half\.json is not JSON"):
        EnergyReport.load(tmp_path / "half.json")


def test_keys_of_a_later_minor_version_are_tolerated(report: EnergyReport) -> None:
    """If this fails, a report with one more column cannot be read by this version."""
    content = report.to_dict() | {"novel": 1}
    content["groups"] = [row | {"novel": 2} for row in content["groups"]]
    assert EnergyReport.from_dict(content) == report


def test_tables(report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, the spreadsheet of a report differs from the report."""
    frame = report.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["name"]) == [group.name for group in report.groups]
    assert list(frame["score"]) == [group.score for group in report.groups]
    text = report.to_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["energy"]) for row in rows] == [group.energy for group in report.groups]


def test_a_group_is_found_by_name(report: EnergyReport) -> None:
    """If this fails, `report["layer"]` gives another layer, or None for a name that is not there."""
    assert report["classifier"].name == "classifier"
    with pytest.raises(KeyError, match="nowhere"):
        report["nowhere"]


def test_what_patterns_left_out_is_counted(tmp_path: Path) -> None:
    """If this fails, a card passes the mean score of some layers off as that of the whole model."""
    model = nn.ModuleDict({name: nn.Linear(9, 6) for name in ("a", "b", "c", "d")})
    whole, part = hf_mhe.analyze(model), hf_mhe.analyze(model, include="*", exclude=["b", "c", "d"])
    assert (whole.left_out, part.left_out) == (0, 3)
    assert EnergyReport.load(part.save(tmp_path / "part.json")).left_out == 3
    for report in (whole, part):
        old = {key: value for key, value in report.to_dict().items() if key != "left_out"}
        assert EnergyReport.from_dict(old) == report, "a report from before there was a count"


def test_a_report_is_shown_in_one_line(report: EnergyReport, odd_report: EnergyReport) -> None:
    """If this fails, a report at the end of a notebook's cell prints every row of every layer."""
    for each, score in ((report, f"{report.summary.mean_score:.3f}"), (odd_report, "spread")):
        shown = repr(each)
        assert each.source in shown
        assert f"{len(each.groups)} groups" in shown
        assert score in shown
        assert len(shown) < 120
        assert "\n" not in repr(dataclasses.replace(each, source="a\nb"))
    assert "mean score –" in repr(dataclasses.replace(odd_report, groups=[odd_report["flat"]]))


@pytest.mark.parametrize("space", ["full", "half"])
@pytest.mark.parametrize("s", [0.0, 1.0, 2.0])
def test_copies_have_an_infinite_score(space: str, s: float, tmp_path: Path) -> None:
    """If this fails, a layer of which every neuron is there twice scores like a random draw, and passes a check."""
    rows = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    copied = hf_mhe.measure(rows.repeat(2, 1), s=s, space=space)
    assert (copied.score, copied.z, copied.coincident) == (math.inf, math.inf, 40)
    assert copied.energy == pytest.approx(hf_mhe.measure(rows, s=s, space=space).energy, rel=0.2), "of the other pairs"
    assert copied.verdict == "copies"
    collapsed = hf_mhe.measure(rows[:1].repeat(9, 1), s=s, space=space)
    assert (collapsed.score, collapsed.verdict, collapsed.equivalent_dimension) == (math.inf, "copies", 1.0)
    layer = nn.Linear(16, 80)
    layer.weight.data = rows.repeat(2, 1)
    report = hf_mhe.analyze(nn.Sequential(layer, nn.Linear(80, 9)), s=s, space=space)
    assert report.summary.most_redundant == "0"
    again = EnergyReport.load(report.save(tmp_path / "r.json"))
    assert again == report
    assert again["0"].score == math.inf
    old = report.to_dict()
    old["groups"] = [row | {"score": 0.95, "z": -1.0} for row in old["groups"]]
    assert EnergyReport.from_dict(old)["0"].score == 0.95, "what an earlier version wrote stays as it is"

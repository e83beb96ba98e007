"""Comparisons: rows matched by name, a summary that adds up, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import hf_mhe
from hf_mhe.analysis import EnergyReport
from hf_mhe.errors import MHEError


def test_rows_are_matched_by_name(report: EnergyReport, other_report: EnergyReport) -> None:
    """If this fails, one layer's before stands beside another layer's after."""
    comparison = hf_mhe.compare(report, other_report)
    assert [row.name for row in comparison.rows] == [group.name for group in other_report.groups]
    for row in comparison.rows:
        assert row.before == report[row.name]
        assert row.after == other_report[row.name]
        assert row.score_change == row.score_after - row.score_before
        assert (row.energy_before, row.energy_after) == (report[row.name].energy, other_report[row.name].energy)


def test_summary_adds_up(report: EnergyReport, other_report: EnergyReport) -> None:
    """If this fails, the headline of a comparison says something else than its rows."""
    comparison = hf_mhe.compare(report, other_report)
    summary = comparison.summary
    assert summary.mean_score_before == pytest.approx(report.summary.mean_score)
    assert summary.mean_score_after == pytest.approx(other_report.summary.mean_score)
    assert summary.mean_score_change == summary.mean_score_after - summary.mean_score_before
    assert summary.mean_spread_change == summary.mean_spread_after - summary.mean_spread_before
    assert summary.most_crowded_before == report.groups[0].name
    assert summary.most_crowded_after == other_report.groups[0].name
    better = sum(row.after.spread > row.before.spread for row in comparison.rows)
    assert (summary.improved, summary.improved + summary.worsened) == (better, summary.groups)
    assert summary.max_cosine_after == max(group.max_cosine for group in other_report.groups)


def test_a_model_compared_with_itself_is_unchanged(bert: nn.Module, bert_folder: Path, report: EnergyReport) -> None:
    """If this fails, noise of the analysis passes for an effect of training."""
    for before in (report, bert_folder, str(bert_folder)):
        comparison = hf_mhe.compare(before, bert)
        assert comparison.summary.unchanged == comparison.summary.groups == len(report.competing)
        assert comparison.summary.mean_score_change == pytest.approx(0.0, abs=1e-6)


def test_spreading_neurons_out_shows_as_improvement() -> None:
    """If this fails, the sign of a change is the wrong way round."""
    torch.manual_seed(0)
    bunched = nn.Linear(16, 8)
    bunched.weight.data += 0.5
    spread = nn.Linear(16, 8)
    nn.init.orthogonal_(spread.weight)
    comparison = hf_mhe.compare(nn.Sequential(bunched), nn.Sequential(spread))
    assert comparison.rows[0].verdict == "improved"
    assert comparison.rows[0].score_change < 0 < comparison.rows[0].spread_change
    assert hf_mhe.compare(nn.Sequential(spread), nn.Sequential(bunched)).summary.worsened == 1


def test_names_on_one_side_only_are_told() -> None:
    """If this fails, a layer that was added or renamed disappears from the comparison in silence."""
    torch.manual_seed(0)
    before = nn.ModuleDict({"shared": nn.Linear(5, 4), "old": nn.Linear(5, 4)})
    after = nn.ModuleDict({"shared": nn.Linear(5, 4), "new": nn.Linear(5, 4)})
    comparison = hf_mhe.compare(before, after)
    assert [row.name for row in comparison.rows] == ["shared"]
    assert (comparison.only_before, comparison.only_after) == (["old"], ["new"])
    with pytest.raises(MHEError, match=r"no group in common: before has old, after has new"):
        hf_mhe.compare(nn.ModuleDict({"old": nn.Linear(5, 4)}), nn.ModuleDict({"new": nn.Linear(5, 4)}))


def test_different_potentials_are_refused(bert: nn.Module, report: EnergyReport) -> None:
    """If this fails, energies of two different functions are subtracted from each other."""
    with pytest.raises(MHEError, match=r"before is s=2, euclidean, full space, after is s=1, euclidean, half space"):
        hf_mhe.compare(report, hf_mhe.analyze(bert, s=1.0, space="half"))


def test_counts_of_different_thresholds_are_said(bert: nn.Module, report: EnergyReport) -> None:
    """If this fails, near-duplicates seem to have come or gone where only the threshold was another."""
    comparison = hf_mhe.compare(report, hf_mhe.analyze(bert, duplicate_cosine=0.5))
    assert comparison.notes == ("near-duplicates are counted from a cosine of 0.95 before, 0.5 after",)
    assert hf_mhe.compare(report, bert).notes == ()


def test_what_is_analyzed_takes_the_reports_potential(bert: nn.Module) -> None:
    """If this fails, a saved report of another potential cannot be compared with a model."""
    half = hf_mhe.analyze(bert, s=1.0, space="half")
    comparison = hf_mhe.compare(half, bert)
    assert comparison.summary.unchanged == len(half.competing)
    assert comparison.after.space == "half"


def test_saved_reports_are_read(report: EnergyReport, other_report: EnergyReport, tmp_path: Path) -> None:
    """If this fails, the report that was published with a model cannot be compared without its weights."""
    before, after = report.save(tmp_path / "before.json"), other_report.save(tmp_path / "after.json")
    comparison = hf_mhe.compare(before, str(after))
    assert comparison == hf_mhe.compare(report, other_report)
    content = json.loads(comparison.save(tmp_path / "comparison.json").read_text())
    assert content == comparison.to_dict()
    assert [row["name"] for row in content["rows"]] == [row.name for row in comparison.rows]
    with pytest.raises(MHEError, match=r"nothing\.json cannot be read"):
        hf_mhe.compare(tmp_path / "nothing.json", report)


def test_groups_without_score_are_compared_by_their_spread() -> None:
    """If this fails, a layer whose expectation diverges stops the comparison, or is left out of it."""
    torch.manual_seed(0)
    comparison = hf_mhe.compare(nn.Sequential(nn.Linear(2, 6)), nn.Sequential(nn.Linear(2, 6)))
    before, after = comparison.rows[0].before, comparison.rows[0].after
    assert comparison.rows[0].verdict == ("improved" if after.spread > before.spread else "worsened")
    assert comparison.summary.mean_score_change is None
    assert comparison.summary.most_redundant_after is None


@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_copies_on_a_side_are_written_and_drawn(sides: tuple[bool, bool], tmp_path: Path) -> None:
    """If this fails, a model that began with copies cannot be published: its score, which is infinite, is no JSON."""
    models = []
    for copies in sides:
        torch.manual_seed(len(models))
        models.append(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5)))
        if copies:
            models[-1][0].weight.data[6:] = models[-1][0].weight.data[:6]
    comparison = hf_mhe.compare(*models)
    copied, plain = (next(row for row in comparison.rows if row.name == name) for name in ("0", "2"))
    assert (copied.score_before == float("inf"), copied.score_after == float("inf")) == sides
    saved = json.loads(comparison.save(tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    changes = {row["name"]: row["score_change"] for row in saved["rows"]}
    assert changes == {"0": None, "2": pytest.approx(plain.score_change)}
    assert saved["summary"]["mean_score_change"] is None
    assert saved["summary"]["mean_spread_change"] == pytest.approx(comparison.summary.mean_spread_change)
    assert "nan" not in comparison.to_html().lower().replace("nan-", "")
    assert comparison.plot(tmp_path / "spread.png").stat().st_size > 1000


def test_table(report: EnergyReport, other_report: EnergyReport) -> None:
    """If this fails, the spreadsheet of a comparison differs from the comparison."""
    comparison = hf_mhe.compare(report, other_report)
    frame = comparison.to_pandas()
    assert list(frame["score_before"]) == [row.score_before for row in comparison.rows]
    assert list(frame["max_cosine_after"]) == [row.after.max_cosine for row in comparison.rows]
    assert comparison.to_csv().count("\n") == len(comparison.rows) + 1

"""Experts and heads are reported one by one, and each stack of them together."""

from __future__ import annotations

import json
import math
import statistics
from io import StringIO

import pandas
import pytest
import torch
from torch import nn

import hf_mhe
from hf_mhe.analysis import EnergyReport, GroupEnergy
from tests.neurons.families.table import FAMILIES


@pytest.fixture(scope="module")
def mixture() -> EnergyReport:
    """A small Mixtral, head by head; two experts have a pair of equal neurons, one a dead neuron."""
    model = FAMILIES["mixtral"].build()
    experts = model.get_submodule("model.layers.1.mlp.experts")
    with torch.no_grad():
        for expert in (0, 2):
            experts.down_proj[expert, 5] = experts.down_proj[expert, 3]
        experts.down_proj[3, 7] = 0
    return hf_mhe.analyze(model, by_head=True)


def test_each_stack_is_its_groups_together(mixture: EnergyReport) -> None:
    """If this fails, what a report says of all experts is not what it says of each."""
    stacks = {stack.name: stack for stack in mixture.stacks}
    assert set(stacks) == {
        *(f"model.layers.{layer}.mlp.experts.*.{part}" for layer in (0, 1) for part in ("gate", "up", "down")),
        *(f"model.layers.{layer}.self_attn.{part}_proj.head.*" for layer in (0, 1) for part in "qkv"),
    }
    assert [stack.spread for stack in mixture.stacks] == sorted(stack.spread for stack in mixture.stacks)
    down = stacks["model.layers.1.mlp.experts.*.down"]
    each = [mixture[f"model.layers.1.mlp.experts.{expert}.down"] for expert in range(4)]
    assert {group.stack for group in each} == {down.name}
    assert (down.groups, down.neurons, down.d, down.kind, down.role) == (4, 4 * 32 - 1, 48, "expert", "hidden")
    assert (down.coincident, down.near_duplicates, down.dead) == (2, 2, 1)
    assert down.max_cosine == max(group.max_cosine for group in each)
    assert down.energy == pytest.approx(sum(group.energy for group in each) / 4, rel=1e-12)
    scores = {group.name: group.score for group in each if group.score is not None}
    assert down.score == pytest.approx(sum(scores.values()) / 4, rel=1e-12)
    spreads = {group.name: group.spread for group in each}
    assert down.spread == pytest.approx(statistics.harmonic_mean(spreads.values()), rel=1e-12)
    assert down.lowest_spread == spreads[down.most_crowded] == min(spreads.values())
    assert down.verdict in {group.verdict for group in each}
    assert (down.highest_score, down.lowest_score) == (max(scores.values()), min(scores.values()))
    assert scores[down.most_redundant] == down.highest_score
    assert stacks["model.layers.0.self_attn.q_proj.head.*"].groups == 4
    assert stacks["model.layers.0.self_attn.k_proj.head.*"].groups == 2


def test_a_stacks_name_is_the_pattern_of_its_groups(mixture: EnergyReport) -> None:
    """If this fails, a user who copies a stack's name from the report selects other layers with it."""
    model = FAMILIES["mixtral"].build()
    for stack in mixture.stacks:
        chosen = hf_mhe.neuron_groups(model, include=stack.name, by_head=True)
        assert {group.name for group in chosen} == {g.name for g in mixture.groups if g.stack == stack.name}


def test_the_table_can_have_one_row_for_each_matrix(mixture: EnergyReport) -> None:
    """If this fails, a report on a hundred experts a layer has no table that a person can read."""
    table = mixture.to_pandas(aggregate=True)
    assert list(table["name"]) == [stack.name for stack in mixture.aggregated]
    assert table["groups"].sum() == len(mixture.groups)
    alone = table[table["name"] == "lm_head"].iloc[0]
    group = mixture["lm_head"]
    assert (alone["groups"], alone["neurons"], alone["role"]) == (1, group.n, "output")
    assert alone["energy"] == group.energy
    assert alone["score"] == alone["highest_score"] == alone["lowest_score"] == group.score
    each = mixture.to_pandas()
    assert len(each) == len(mixture.groups)
    assert each.groupby("stack")["score"].mean().to_dict() == pytest.approx(
        {stack.name: stack.score for stack in mixture.stacks}
    )
    written = pandas.read_csv(StringIO(mixture.to_csv(aggregate=True)))
    assert list(written["name"]) == list(table["name"])


@pytest.mark.slow
def test_stacks_are_in_the_json_and_on_the_page(mixture: EnergyReport) -> None:
    """If this fails, the aggregate is lost on the way to whoever reads the saved report."""
    content = json.loads(json.dumps(mixture.to_dict(), allow_nan=False))
    assert [stack["name"] for stack in content["stacks"]] == [stack.name for stack in mixture.stacks]
    assert EnergyReport.from_dict(content) == mixture
    assert EnergyReport.from_dict(content).stacks == mixture.stacks
    page = mixture.to_html()
    assert 'id="stacks"' in page
    assert all(f">{stack.name}<" in page for stack in mixture.stacks)


@pytest.mark.slow
def test_a_report_of_before_stacks_is_read(mixture: EnergyReport) -> None:
    """If this fails, an upgrade makes the reports that users have saved unreadable."""
    content = mixture.to_dict()
    del content["stacks"]
    for group in content["groups"]:
        del group["stack"]
    older = EnergyReport.from_dict(content)
    assert older.stacks == []
    assert [group.energy for group in older.groups] == [group.energy for group in mixture.groups]
    assert 'id="stacks"' not in older.to_html()


def _stacks(model: nn.Module) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for group in hf_mhe.neuron_groups(model):
        if group.stack is not None:
            found.setdefault(group.stack, []).append(group.name)
    return found


def test_only_what_is_numbered_within_a_layer_is_a_stack() -> None:
    """If this fails, layers that merely have numbers in their names are thrown together."""
    model = nn.ModuleDict(
        {
            "head": nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)),
            "groups": nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)]),
            "conv": nn.Conv2d(4, 6, 3, groups=2),
            "lstm": nn.LSTM(5, 3),
            "experts": nn.ModuleList([nn.ModuleDict({"w1": nn.Linear(6, 5)}) for _ in range(3)]),
        }
    )
    assert _stacks(model) == {
        "conv.groups.*": ["conv.groups.0", "conv.groups.1"],
        "experts.*.w1": ["experts.0.w1", "experts.1.w1", "experts.2.w1"],
    }
    assert _stacks(nn.Conv1d(4, 6, 3, groups=2)) == {"groups.*": ["groups.0", "groups.1"]}


def test_a_stack_without_scores_has_none() -> None:
    """If this fails, an expectation that diverges becomes a number in the aggregate."""
    torch.manual_seed(0)
    report = hf_mhe.analyze(nn.Sequential(nn.Conv1d(2, 12, 1, groups=1), nn.Conv1d(4, 12, 1, groups=2)))
    (stack,) = report.stacks
    assert stack.name == "1.groups.*"
    assert (stack.score, stack.highest_score, stack.lowest_score) == (None, None, None)
    assert stack.expected == math.inf
    assert report.to_dict()["stacks"][0]["expected"] is None


def test_a_group_row_needs_no_stack(mixture: EnergyReport) -> None:
    """If this fails, code that builds rows itself breaks at the new field."""
    row = mixture["lm_head"].to_dict()
    assert row["stack"] is None
    assert GroupEnergy.from_dict(row) == mixture["lm_head"]

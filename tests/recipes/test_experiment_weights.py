"""The curves over the weight of MHE: every part trains, what is fine-tuned was trained, the rule finds a weight."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from declared import _parts as parts
from declared import _rivals as rivals
from harness.data.images import Splits
from harness.models import characters
from harness.plan.experiment import ExperimentError
from harness.runs.store import RESULTS
from harness.runs.surroundings import ROOT
from harness.statistics import rule
from harness.tasks import weighing

from hf_mhe import neuron_groups
from tests.recipes.toy_experiment import RECIPES


def few_steps(part: dict[str, Any], steps: int = 3) -> dict[str, Any]:
    """A part on small data; the base of what is fine-tuned, too."""
    small = copy.deepcopy(part)
    small["recipe"] = {**part["recipe"], "steps": steps, "warmup": 0}
    if part["kind"] == "names":
        return {**small, "data": {"languages": 40, "train": 400}, "base": {**part["base"], "steps": 3, "warmup": 0}}
    small["data"] = {"name": "digits", "train": 400, "side": 8}
    if small["model"]["kind"] == "patches":
        small["model"]["patch_size"] = 4
    return small


def weighed(part: dict[str, Any], **settings: Any) -> Any:
    mhe = {**rivals.MHE_FULL, "hidden_weight": 0.1}
    return weighing.run(
        {"part": part, "penalty": mhe, "by_ratio": False, "ratio": None, "rate": 1.0, **settings}, 7, True
    )


@pytest.mark.recipes
@pytest.mark.parametrize("part", [*parts.CURVES, *parts.OTHERS], ids=lambda part: part["name"])
def test_every_part_of_the_curves_trains(part: dict[str, Any]) -> None:
    if part["kind"] == "names":
        pytest.importorskip("babel")
    if part.get("from") == "lora":
        pytest.importorskip("peft")
    result = weighed(few_steps(part))
    assert result["diverged"] is None
    assert 0 <= result["test"] <= 100
    assert result["energies"]["after"]["mean_score"] < math.inf
    assert result["energies"]["after"] != result["energies"]["before"]


@pytest.mark.recipes
def test_a_base_that_is_trained_with_a_penalty_is_less_redundant() -> None:
    """less_redundant would fine-tune the checkpoint of fine_tuning."""
    pytest.importorskip("babel")
    plain = few_steps(parts.FINE_TUNING)
    strong = {**plain, "base_penalty": {**rivals.MHE_FULL, "hidden_weight": 1000.0}}
    starts = [weighed(part)["energies"]["before"]["mean_score"] for part in (plain, strong)]
    assert starts[1] < 0.7 * starts[0]
    for part in parts.PRETRAINED:
        assert part["base_penalty"]["hidden_weight"] > 0
        assert {**part, "name": "", "base_penalty": None} == {**parts.FINE_TUNING, "name": "", "base_penalty": None}


@pytest.mark.recipes
def test_fine_tuning_and_lora_begin_with_one_trained_model() -> None:
    pytest.importorskip("babel")
    pytest.importorskip("peft")
    began = {}
    for part in (parts.FINE_TUNING, parts.LORA):
        small = few_steps(part)
        _, data = characters.halves(small["data"]["languages"])
        began[part["name"]], said = characters.begun(small, data, 7)
        assert said is not None
    full, adapted = began.values()
    batch = {"input_ids": torch.arange(40).view(2, 20) % 9 + 1, "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    torch.testing.assert_close(adapted.eval()(**batch).logits, full.eval()(**batch).logits)
    fresh = characters.fresh(parts.FINE_TUNING["model"], full.config.num_labels)
    assert not torch.equal(
        full.bert.encoder.layer[0].output.dense.weight, fresh.bert.encoder.layer[0].output.dense.weight
    )
    trains = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trains)
    groups = [group for group in neuron_groups(adapted) if group.role == "hidden"]
    assert len([group for group in groups if "encoder" in group.name]) == 12, "six linear layers in each of two"


@pytest.mark.recipes
def test_the_halves_of_the_languages_share_no_name() -> None:
    pytest.importorskip("babel")
    first, second = characters.halves(40)

    def names(data: Splits) -> set[bytes]:
        parts_of = (data.train, data.validation, data.test)
        return {row.numpy().tobytes() for part in parts_of for row in part.columns["input_ids"]}

    assert abs(first.classes - second.classes) <= 1
    # Hashed and cut characters of two names may meet.
    assert len(names(first) & names(second)) < 0.01 * len(names(first))


@pytest.mark.slow
def test_a_weight_by_the_ratio_is_in_proportion_to_what_a_training_logs() -> None:
    small = few_steps(parts.PERCEPTRON, steps=70)
    mhe = {**rivals.MHE_FULL, "hidden_weight": rule.PROBE}
    log = weighed(small, penalty=mhe)["log"]
    (logged,) = [entry["mhe_gradient_ratio"] for entry in log if entry["step"] == rule.STEP]
    result = weighed(small, by_ratio=True, ratio=0.3)
    assert result["weight"] == pytest.approx(0.3 * rule.PROBE / result["probed"]["ratio"])
    assert result["probed"]["ratio"] == pytest.approx(logged)
    with pytest.raises(ExperimentError, match="lambda_curves, whose runs are not all there"):
        weighed(small, by_ratio=True)


def test_the_rule_that_runs_take_is_the_one_that_the_document_says() -> None:
    said = re.search(r"Rule: aim at a ratio of ([\d.]+)\.\*\*", (RECIPES / "results" / "TABLES.md").read_text())
    assert said is not None
    taken = rule.derived()
    assert taken is not None, f"{RESULTS} has not all runs of {rule.CURVES}"
    assert f"{taken:.2g}" == said.group(1)


def test_results_and_repository_are_where_they_are() -> None:
    assert RESULTS == RECIPES / "results"
    assert (ROOT / "pyproject.toml").is_file()

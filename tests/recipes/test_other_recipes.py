"""The recipes that are not a Trainer's alone: a loop with accelerate, class prototypes, the selection of data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForImageClassification

from tests.recipes.scripts import (
    images,
    in_this_process,
)

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("columns", "part", "expected"),
    [
        (("said", "label"), "train", "the train data has no column 'text'; it has said, label"),
        (("text", "liked"), "train", "the train data has no column 'label'; it has text, liked"),
        (("text", "label"), "dev", "the data has no split 'train'; it has "),
    ],
)
def test_a_loop_says_what_its_data_lacks(
    columns: tuple[str, str], part: str, expected: str, tmp_path: Path, capsys: Any
) -> None:
    """Data of other columns, which the loop has no arguments for, would end in a key error."""
    (tmp_path / "data").mkdir()
    rows = dict(zip(columns, ([f"number {i}" for i in range(8)], [i % 2 for i in range(8)]), strict=True))
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / f"{part}-0.parquet")
    arguments = ["--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "out"]
    assert in_this_process("accelerate_loop", *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("accelerate_loop.py: error: ")
    assert expected in last


@pytest.mark.parametrize("federated", [0, 3])
def test_prototypes_stay_what_they_were(federated: int, tmp_path: Path, capsys: Any) -> None:
    """The last layer would be trained, or be other directions than those of least energy."""
    given = images(tmp_path)
    arguments = [*given.given(tmp_path / "out"), "--federated", federated, "--scale", 3]
    assert in_this_process("class_prototypes", *arguments) == 0
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    cosines = (
        torch.nn.functional.normalize(model.classifier.weight)
        @ torch.nn.functional.normalize(model.classifier.weight).T
    )
    torch.testing.assert_close(cosines, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))  # two points of a sphere: antipodes
    torch.testing.assert_close(model.classifier.weight.norm(dim=1), torch.full((2,), 3.0))
    assert model.classifier.bias.abs().max() == 0
    said = capsys.readouterr().out
    assert "mean spread" in said
    assert ("round 1 of " in said) == bool(federated)


def test_what_is_chosen_by_energy_has_less_of_it(tmp_path: Path, capsys: Any) -> None:
    """The choice would be no better spread than one by chance, or other rows would be saved than were chosen."""
    arguments = ["--quick", "--output_dir", tmp_path / "chosen", "--max_samples", 150]
    assert in_this_process("data_selection", *arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" +\d+ ", line)]
    energy = {(int(count), name): float(value) for count, name, _, value, _ in rows}
    assert {count for count, _ in energy} == {20, 40}
    for count in (20, 40):
        assert energy[count, "energy"] < min(energy[count, "random"], energy[count, "k-center"])
    chosen = datasets.load_from_disk(tmp_path / "chosen")
    assert len(set(chosen["text"])) == 40


BAD = {
    "class_prototypes": (["--image_column", "pixels"], "no column 'pixels'; it has image, label"),
    "data_selection": (["--rounds", "1000"], "1000 rounds of 20 cannot be chosen among 200 rows"),
}


@pytest.mark.parametrize("script", BAD)
def test_bad_input_is_one_clear_line(script: str, tmp_path: Path, capsys: Any) -> None:
    """A typing error would end in pages of traceback, or in a status that says that all went well."""
    arguments, expected = BAD[script]
    if script == "class_prototypes":
        arguments = ["--dataset_name", images(tmp_path).arguments["--dataset_name"], *arguments]
    capsys.readouterr()
    assert in_this_process(script, "--quick", "--output_dir", tmp_path / "out", *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{script}.py: error: ")
    assert expected in last

"""The recipes that are not a Trainer's alone: a loop with accelerate, class prototypes, the selection of data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from tests.recipes.scripts import (
    RECIPES,
    furthest,
    images,
    in_this_process,
    in_two_processes,
    launched_by_accelerate,
    texts,
    weights,
)

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]


def loop_arguments(folder: Path, output: Path, **changes: object) -> list[str]:
    """A user's own model and data for the loop, in two epochs of two steps."""
    rows = datasets.Dataset.from_dict(
        {"text": [f"{'good' if i % 2 else 'poor'} number {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    ).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    if not (folder / "data").exists():
        texts(folder)
        (folder / "data").mkdir()
        rows.take(32).to_parquet(folder / "data" / "train-0.parquet")
        rows.skip(32).to_parquet(folder / "data" / "test-0.parquet")
    given = {
        "model_name_or_path": folder / "model", "dataset_name": folder / "data", "output_dir": output, "num_epochs": 2,
        "batch_size": 16, "learning_rate": 1e-3, "mhe_hidden_weight": 10, "mhe_schedule": "linear",
    } | changes  # fmt: skip
    return [str(word) for key, value in given.items() for word in (f"--{key}", value)]


def test_a_loop_goes_on_where_it_was_stopped_and_loads(tmp_path: Path, capsys: Any) -> None:
    """A loop that was resumed would forget the step of the penalty's schedule, or its data's order."""
    assert in_this_process("accelerate_loop", *loop_arguments(tmp_path, tmp_path / "whole")) == 0
    assert re.search(r"mean spread \S+ -> \S+", capsys.readouterr().out)
    resumed = loop_arguments(tmp_path, tmp_path / "resumed", resume_from_checkpoint=tmp_path / "whole" / "epoch_0")
    assert in_this_process("accelerate_loop", *resumed) == 0
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "whole" / "epoch_0")) > 1e-4
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "resumed")) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert (
        furthest({name: model.state_dict()[name] for name in weights(tmp_path / "whole")}, weights(tmp_path / "whole"))
        == 0
    )


def test_a_loop_of_two_processes_trains_as_one_process_does(tmp_path: Path) -> None:
    """The launch line of the loop would train something else than the plain line."""
    assert in_this_process("accelerate_loop", *loop_arguments(tmp_path, tmp_path / "one")) == 0
    arguments = loop_arguments(tmp_path, tmp_path / "two", batch_size=8)
    in_two_processes(launched_by_accelerate("multi_gpu"), RECIPES / "accelerate_loop.py", *arguments, "--cpu")
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4


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
    "accelerate_loop": (["--dataset_name", "nobody/nothing"], "nobody/nothing"),
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

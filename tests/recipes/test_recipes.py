"""The recipes: their defaults, a user's own models and data, several processes, resumption, the Hub, bad input."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server.server import HubServer
from tests.recipes.scripts import (
    OWN,
    RECIPES,
    Own,
    furthest,
    in_this_process,
    in_two_processes,
    launched_by_accelerate,
    weights,
)

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "tests.recipes.sharded"]


# What the defaults of some of them read, as Debian packages and their folders.
DEBIAN = {
    "image_classification": ("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist"),
    "sentence_embeddings": ("wordnet-base", "/usr/share/wordnet"),
}


@functools.cache
def own(script: str) -> tuple[Own, Path]:
    """A user's own model and data for a recipe, and the folder of its training in one process."""
    folder = Path(_folder()) / script
    folder.mkdir()
    given = OWN[script](folder)
    assert in_this_process(script, *given.given(folder / "trained"), "--per_device_train_batch_size", 8) == 0
    return given, folder / "trained"


@functools.cache
def _folder() -> str:
    return tempfile.mkdtemp(prefix="recipes-")


def spreads(said: str) -> tuple[float, float]:
    found = re.search(r"mean spread (\S+) -> (\S+)", said)
    assert found, said
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("script", OWN)
def test_a_recipe_runs_as_it_stands(script: str, tmp_path: Path, capsys: Any) -> None:
    """A newcomer's first command would fail, or train nothing."""
    package, folder = DEBIAN.get(script, ("", "/"))
    if not Path(folder).is_dir():
        pytest.skip(f"apt-get install {package}")
    assert in_this_process(script, "--quick", "--output_dir", tmp_path) == 0
    before, after = spreads(capsys.readouterr().out)
    assert 0 < before < 3
    assert 0 < after < 3
    assert {"config.json", "mhe_config.json", "model.safetensors"} <= {file.name for file in tmp_path.iterdir()}
    assert furthest(weights(tmp_path / "checkpoint-2"), weights(tmp_path)) > 0, "the last steps changed nothing"


@pytest.mark.parametrize("script", OWN)
def test_what_was_trained_on_own_data_loads(script: str, tmp_path: Path) -> None:
    """A user's model would come back with other weights than those that were trained."""
    import transformers

    given, trained = own(script)
    getattr(transformers, given.auto_class).from_pretrained(trained).save_pretrained(tmp_path)
    assert furthest(weights(tmp_path), weights(trained)) == 0


@pytest.mark.parametrize("script", OWN)
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(script: str, tmp_path: Path) -> None:
    """A training that was stopped would go on with other data, another rate or without its penalty."""
    given, trained = own(script)
    resumed = given.given(tmp_path, resume_from_checkpoint=trained / "checkpoint-2", per_device_train_batch_size=8)
    assert in_this_process(script, *resumed) == 0
    assert furthest(weights(trained / "checkpoint-2"), weights(trained)) > 1e-4
    assert furthest(weights(tmp_path), weights(trained)) == 0


@pytest.mark.parametrize("script", OWN)
def test_two_processes_end_where_one_does(script: str, tmp_path: Path) -> None:
    """The launch line of a recipe would train something else than the plain line, batch for batch."""
    given, trained = own(script)
    arguments = [*given.given(tmp_path, per_device_train_batch_size=4), "--use_cpu"]
    said = in_two_processes(launched_by_accelerate("multi_gpu"), RECIPES / f"{script}.py", *arguments)
    assert spreads(said)
    assert furthest(weights(tmp_path), weights(trained)) < 1e-5


@pytest.mark.parametrize(("engine", "script"), [("fsdp2", "text_classification"), ("zero2", "text_classification")])
def test_a_sharded_training_ends_where_one_process_does(engine: str, script: str, tmp_path: Path) -> None:
    """A recipe would need another line where a model is sharded."""
    if engine == "zero2":
        pytest.importorskip("deepspeed")
    given, trained = own(script)
    arguments = [*given.given(tmp_path, per_device_train_batch_size=4, save_strategy="no"), "--use_cpu"]
    said = in_two_processes([*TORCHRUN, engine], RECIPES / f"{script}.py", *arguments)
    assert spreads(said)
    assert furthest(weights(tmp_path), weights(trained)) < 1e-5


@pytest.mark.parametrize("script", OWN)
def test_a_recipe_publishes_its_model_with_a_card(script: str, tmp_path: Path, hub: HubServer) -> None:
    """What is on the Hub would be a model without its energies, or not the one that was trained."""
    given, trained = own(script)
    name = f"alice/{script}"
    arguments = given.given(tmp_path / "out", per_device_train_batch_size=8, hub_model_id=name)
    hub.run([str(RECIPES / f"{script}.py"), *arguments, "--push_to_hub"], tmp_path / "home", timeout=200)
    load = f"""
import hf_mhe, transformers
from hf_mhe.hub import load_report
model = transformers.{given.auto_class}.from_pretrained({name!r})
model.save_pretrained({str(tmp_path / "loaded")!r})
print("published spread", load_report({name!r}).summary.mean_spread)
from huggingface_hub import ModelCard
print(ModelCard.load({name!r}).text)
"""
    said = hub.run(["-c", load], tmp_path / "home").stdout
    assert furthest(weights(tmp_path / "loaded"), weights(trained)) == 0
    found = re.search(r"published spread (\S+)", said)
    assert found
    assert 0 < float(found[1]) < 3
    assert "energy" in said


COLUMN = {
    "causal_lm": "--dataset_text_field", "seq2seq": "--target_column", "sentence_embeddings": "--positive_column",
    "upcycle": "--dataset_text_field",
}  # fmt: skip
METRICS_OF_THEIR_OWN = {"causal_lm", "sentence_embeddings", "upcycle"}
BAD = {
    "an unknown model": (["--model_name_or_path", "nobody/nothing"], "nobody/nothing"),
    "an unknown data set": (["--dataset_name", "nobody/nothing"], "nobody/nothing"),
    "a missing column": (["COLUMN", "kind"], "no column 'kind'"),
    "a missing split": (["--train_split", "dev"], "no split 'dev'; it has train"),
    "an unknown metric": (["--metric", "nobody/nothing"], "nobody/nothing"),
    "a bad number": (["--mhe_s", "-1"], "s must be a finite number >= 0; got -1.0"),
}


@pytest.mark.parametrize("script", OWN)
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_one_clear_line(script: str, bad: str, tmp_path: Path, capsys: Any) -> None:
    """A typing error would end in pages of traceback, or in a status that says that all went well."""
    if script in METRICS_OF_THEIR_OWN and bad == "an unknown metric":
        pytest.skip("its metric is the loss, or a library's own")
    given, _ = own(script)
    arguments, expected = BAD[bad]
    arguments = [COLUMN.get(script, "--label_column") if word == "COLUMN" else word for word in arguments]
    capsys.readouterr()
    assert in_this_process(script, *given.given(tmp_path / "out"), *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{script}.py: error: ")
    assert expected in last


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        ("tensor_parallel", ["--use_cpu"], "error: Mesh should not be bigger than default world size 2"),
        ("multi_gpu", [], "error: 2 processes were launched, each for itself: without GPUs, add --use_cpu"),
    ],
)
def test_a_config_that_does_not_fit_the_machine_is_one_clear_line(
    config: str, more: list[str], expected: str, tmp_path: Path
) -> None:
    """A mesh of eight would end in pages of torch, and processes that are not connected in each other's files."""
    script = RECIPES / "image_classification.py"
    with pytest.raises(AssertionError) as failed:
        in_two_processes(launched_by_accelerate(config), script, "--quick", "--output_dir", tmp_path, *more)
    assert f"image_classification.py: {expected}" in str(failed.value)
    assert not list(tmp_path.iterdir())

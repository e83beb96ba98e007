"""The recipes: their defaults, a user's own models and data, resumption, the Hub, bad input."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import Trainer

from tests.hub_server.server import HubServer
from tests.recipes.in_turn import Outcome, in_turn
from tests.recipes.scripts import OWN, RECIPES, furthest, in_this_process, own, spreads, weights

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]
# What the defaults of some of them read, as Debian packages and their folders.
FASHION_MNIST = ("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist")
DEBIAN = {
    "image_classification": FASHION_MNIST, "class_prototypes": FASHION_MNIST, "watch_training": FASHION_MNIST,
    "sentence_embeddings": ("wordnet-base", "/usr/share/wordnet"),
}  # fmt: skip


def test_every_recipe_that_trains_is_in_the_table() -> None:
    """A new recipe would be tested by nothing."""
    assert {file.stem for file in RECIPES.glob("*.py")} == {*OWN, "data_selection", "offline"}


IMAGES = ("class_prototypes", "image_classification", "watch_training")
# Functions that recipes repeat, since each is copied by itself.
ALIKE = [
    ("as_classes", (*IMAGES, "data_selection", "text_classification")),
    ("check", IMAGES),
    ("load_data", IMAGES),
    ("load_data", ("causal_lm", "upcycle")),
    ("load_tokenizer", ("accelerate_loop", "data_selection", "seq2seq", "text_classification")),
    ("load_tokenizer", ("causal_lm", "upcycle")),
    ("to_rgb", IMAGES),
]


@pytest.mark.parametrize(("function", "scripts"), ALIKE)
def test_what_recipes_repeat_is_alike_to_the_letter(function: str, scripts: tuple[str, ...]) -> None:
    """A fault that was mended in one recipe would stay in another."""
    found = set()
    for script in scripts:
        text = (RECIPES / f"{script}.py").read_text(encoding="utf-8")
        (node,) = (n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == function)
        found.add(ast.get_source_segment(text, node))
    assert len(found) == 1


@pytest.mark.parametrize("script", OWN)
def test_every_process_waits_for_the_others_before_it_leaves(script: str) -> None:
    """One that aborts as it leaves would end the others; what that costs is tested with two processes of upcycle."""
    lines = (RECIPES / f"{script}.py").read_text(encoding="utf-8").splitlines()
    leaves = re.compile(r" *(trainer\.end|accelerator\.end_training)\(\)")
    ends = [at for at, line in enumerate(lines) if leaves.fullmatch(line)]
    assert ends
    for at in ends:
        assert re.match(r" *(trainer\.)?accelerator\.wait_for_everyone\(\) ", lines[at - 1]), lines[at]


@pytest.mark.parametrize("script", sorted({*OWN} - {*IMAGES, "accelerate_loop"}))
def test_what_was_trained_is_saved_before_its_evaluation_can_fail(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of training would be lost with the first row that cannot be evaluated."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    given = OWN[script](tmp_path)
    monkeypatch.setattr(Trainer, "evaluate", full)
    with pytest.raises(OSError, match="no space left"):
        in_this_process(script, *given.given(tmp_path / "out"))
    assert furthest(weights(tmp_path / "out"), weights(tmp_path / "out" / given.checkpoint)) > 0


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
    given, _ = own(script)
    assert {"config.json", "model.safetensors"} <= {file.name for file in tmp_path.iterdir()}
    assert (tmp_path / "mhe_config.json").exists() == given.penalized
    assert furthest(weights(tmp_path / given.checkpoint), weights(tmp_path)) > 0, "the last steps changed nothing"


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
    middle = trained / given.checkpoint
    assert in_this_process(script, *given.given(tmp_path, resume_from_checkpoint=middle)) == 0
    assert furthest(weights(middle), weights(trained)) > 1e-4
    assert furthest(weights(tmp_path), weights(trained)) == 0


LOAD_MODEL = """
import json, sys, transformers
from huggingface_hub import ModelCard
from hf_mhe.hub import load_report
name, auto_class, folder = sys.argv[1:]
getattr(transformers, auto_class).from_pretrained(name).save_pretrained(folder)
print(json.dumps([load_report(name).summary.mean_spread, ModelCard.load(name).text]))
"""
LOAD_ROWS = "import datasets, sys; datasets.load_dataset(sys.argv[1], split='train').save_to_disk(sys.argv[2])"


@dataclass(frozen=True)
class Published:
    """Where the recipes wrote, where the models and rows lie that were loaded from the Hub, and what was printed."""

    out: Path
    loaded: Path
    pushing: dict[str, Outcome]
    loading: dict[str, Outcome]


@pytest.fixture(scope="module")
def published(_hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Every recipe with --push_to_hub in one process, and everything loaded in another one, with an empty cache."""
    folder = tmp_path_factory.mktemp("published")
    out, loaded = folder / "out", folder / "loaded"
    load_model, load_rows = folder / "load_model.py", folder / "load_rows.py"
    load_model.write_text(LOAD_MODEL)
    load_rows.write_text(LOAD_ROWS)
    push, load = [], []
    for script in OWN:
        given, name = own(script)[0], f"alice/{script}"
        push.append([script, RECIPES / f"{script}.py", *given.given(out / script), *given.publish, name])
        load.append([script, load_model, name, given.auto_class, loaded / script])
    script, name = "data_selection", "alice/chosen"
    words = ["--quick", "--max_samples", 150, "--output_dir", out / script, "--push_to_hub", name]
    push.append([script, RECIPES / f"{script}.py", *words])
    load.append([script, load_rows, name, loaded / script])

    def outcomes(jobs: list[list[Any]], home: Path) -> dict[str, Outcome]:
        module = ["-m", "tests.recipes.in_turn"]
        return in_turn(jobs, lambda *files: _hub_server.run([*module, *map(str, files)], home, timeout=500))

    return Published(out, loaded, outcomes(push, folder / "home"), outcomes(load, folder / "cache"))


@pytest.mark.timeout(1200)  # of the first, which starts all
@pytest.mark.parametrize("script", OWN)
def test_a_recipe_publishes_its_model_with_a_card(script: str, published: Published) -> None:
    """What is on the Hub would be a model without its energies, or not the one that was trained."""
    printed = spreads(published.pushing[script].checked())
    spread, card = json.loads(published.loading[script].checked().splitlines()[-1])
    assert furthest(weights(published.loaded / script), weights(own(script)[1])) == 0
    assert spread == pytest.approx(printed[1], abs=1e-3)
    figures = re.search(r"mean spread of [^*]+\*\*([\d.]+)\*\*[^*]*; it was \*\*([\d.]+)\*\* before", card)
    assert figures, card
    assert (float(figures[2]), float(figures[1])) == pytest.approx(printed, abs=1e-3)


@pytest.mark.timeout(1200)
def test_the_rows_that_were_chosen_are_published(published: Published) -> None:
    """The data set on the Hub would have other rows than those that were chosen, or another order."""
    published.pushing["data_selection"].checked()
    published.loading["data_selection"].checked()
    chosen, loaded = (
        datasets.load_from_disk(folder / "data_selection") for folder in (published.out, published.loaded)
    )
    assert len(chosen) == 40
    assert loaded.to_list() == chosen.to_list()
    assert loaded.features == chosen.features


COLUMN = {
    "causal_lm": "--dataset_text_field", "seq2seq": "--target_column", "sentence_embeddings": "--positive_column",
    "upcycle": "--dataset_text_field",
}  # fmt: skip
NUMBER = {"watch_training": (["--every_n_steps", "0"], "every_n_steps must be an integer >= 1; got 0")}
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
    if script == "accelerate_loop" and bad in ("a missing column", "a missing split"):
        pytest.skip("it has no such argument; what its data lacks is tested beside the loop")
    given, _ = own(script)
    arguments, expected = NUMBER.get(script, BAD[bad]) if bad == "a bad number" else BAD[bad]
    arguments = [COLUMN.get(script, "--label_column") if word == "COLUMN" else word for word in arguments]
    capsys.readouterr()
    assert in_this_process(script, *given.given(tmp_path / "out"), *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{script}.py: error: ")
    assert expected in last

"""A user's own data and models as they come: files, labels and columns of all kinds, and what cannot be trained on."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2Model

from tests.recipes.own import IMAGES, LABELS, TEXTS, WORDS, json_lines, refused
from tests.recipes.scripts import OWN, RECIPES, furthest, images, in_this_process, tokenizer_of_minilm, weights

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]


def load(script: str, path: Path, **changes: Any) -> datasets.DatasetDict:
    """What a recipe reads of a file or a folder with the columns `text` and `label`."""
    given = {
        "dataset_name": str(path), "dataset_config": None, "train_split": "train", "test_split": "test",
        "text_columns": ["text"], "text_column": "text", "label_column": "label", "max_train_samples": None,
        "max_eval_samples": None, "max_samples": None, "rounds": 1, "per_round": 2,
    } | changes  # fmt: skip
    recipe = runpy.run_path(str(RECIPES / f"{script}.py"), run_name="recipe")
    found: datasets.DatasetDict = recipe["load_data"](SimpleNamespace(**given))
    return found


@pytest.mark.parametrize("script", LABELS)
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([i % 12 + 1 for i in range(40)], [str(i) for i in range(1, 13)]),
        ([i % 2 * 2 - 1 for i in range(40)], ["-1", "1"]),
        ([i % 2 == 0 for i in range(40)], ["false", "true"]),
        (["yes" if i % 2 else "no" for i in range(40)], ["no", "yes"]),
    ],
    ids=["numbers from 1", "signs", "truths", "words"],
)
def test_labels_become_classes_in_their_order(
    script: str, labels: list[Any], names: list[str], tmp_path: Path
) -> None:
    """The tenth class would be the second, or a file of JSON lines would need another script."""
    found = load(script, json_lines(tmp_path / "rows.jsonl", text=WORDS, label=labels))
    assert found["train"].features["label"].names == names
    given = dict(zip(WORDS, labels, strict=True))
    for row in (*found["train"], *found["test"]):
        assert names[row["label"]] == str(given[row["text"]]).lower()
    assert len(found["train"]) + len(found["test"]) == 40


@pytest.mark.parametrize("script", LABELS[:2])
def test_the_part_that_is_named_is_evaluated_on(script: str, tmp_path: Path) -> None:
    """A model would be evaluated on rows that it was trained on, or on others than the user named."""
    labels = [i % 2 for i in range(40)]
    json_lines(tmp_path / "train.jsonl", text=WORDS, label=labels)
    json_lines(tmp_path / "validation.jsonl", text=["unseen", "unheard"], label=[0, 1])
    assert load(script, tmp_path, test_split="validation")["test"]["text"][:] == ["unseen", "unheard"]
    held = load(script, tmp_path)
    assert not set(held["train"]["text"]) & set(held["test"]["text"])
    with pytest.raises(ValueError, match="no split 'tset'; it has train, validation"):
        load(script, tmp_path, test_split="tset")


def secret(folder: Path, label: int | None) -> Path:
    """A folder whose part for the test has no labels, as the Hub has them."""
    json_lines(folder / "train.jsonl", text=WORDS, label=[i % 2 for i in range(40)])
    json_lines(folder / "test.jsonl", text=WORDS[:8], label=[label] * 8)
    return folder


@pytest.mark.parametrize("script", LABELS)
@pytest.mark.parametrize("label", [-1, None])
def test_a_test_without_labels_is_refused_before_the_training(
    script: str, label: int | None, tmp_path: Path, capsys: Any
) -> None:
    """A training of hours would end in a traceback at its first evaluation."""
    out = tmp_path / "out"
    said = refused(capsys, script, "--dataset_name", secret(tmp_path / "data", label), "--output_dir", out)
    assert "the test data has rows without a 'label'" in said


@pytest.mark.parametrize("script", LABELS)
def test_classes_that_cannot_be_learnt_are_refused_before_the_training(
    script: str, tmp_path: Path, capsys: Any
) -> None:
    """A classifier of one class would be trained as a regression, which its accuracy of 1 hides."""
    out = ["--output_dir", tmp_path / "out"]
    one = json_lines(tmp_path / "rows.jsonl", text=WORDS, label=["yes"] * 40)
    assert "the train data has only one 'label'" in refused(capsys, script, "--dataset_name", one, *out)
    json_lines(tmp_path / "own" / "train.jsonl", text=WORDS, label=[["no", "yes"][i % 2] for i in range(40)])
    json_lines(tmp_path / "own" / "test.jsonl", text=["a", "b", "c"], label=["yes", "perhaps", "maybe"])
    said = refused(capsys, script, "--dataset_name", tmp_path / "own", *out)
    assert "the test data has a 'label' that train lacks: maybe, perhaps" in said


@pytest.mark.parametrize("script", LABELS[:2])
def test_a_limit_draws_rows_of_all_classes(script: str, tmp_path: Path) -> None:
    """The first thousand reviews of a data set that is sorted by class would all be bad ones."""
    for part in ("train", "test"):
        json_lines(tmp_path / f"{part}.jsonl", text=WORDS, label=[i // 20 for i in range(40)])
    found = load(script, tmp_path, max_train_samples=16, max_samples=16, max_eval_samples=12)
    for part, rows in (("train", 16), ("test", 12)):
        assert len(found[part]) == rows
        assert set(found[part]["label"]) == {0, 1}


@pytest.mark.parametrize("script", TEXTS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([*WORDS[1:], None], "the train data has rows without a 'said'"),
        (list(range(40)), "the column 'said' has no texts: it is Value('int64')"),
    ],
    ids=["an empty row", "numbers"],
)
def test_a_column_without_texts_is_one_clear_line(
    script: str, values: list[Any], expected: str, tmp_path: Path, capsys: Any
) -> None:
    """An empty cell of a table would end in pages of a tokenizer's traceback."""
    file = json_lines(tmp_path / "rows.jsonl", said=values, label=[i % 2 for i in range(40)])
    columns = [word for option in TEXTS[script] for word in (option, "said")]
    said = refused(capsys, script, "--dataset_name", file, "--output_dir", tmp_path / "out", *columns)
    assert expected in said
    assert not (tmp_path / "out").exists()


def test_texts_are_not_looked_up_by_themselves(tmp_path: Path, capsys: Any) -> None:
    """One column for both would end in a traceback of pyarrow's."""
    file = json_lines(tmp_path / "rows.jsonl", said=WORDS)
    columns = ["--anchor_column", "said", "--positive_column", "said", "--output_dir", tmp_path / "out"]
    assert "are one column, 'said'" in refused(capsys, "sentence_embeddings", "--dataset_name", file, *columns)


@pytest.mark.parametrize("script", [*TEXTS, "accelerate_loop"])
def test_a_file_that_is_damaged_is_one_clear_line(script: str, tmp_path: Path, capsys: Any) -> None:
    """A line that was cut off would be a traceback without the reason."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": 1}\n{"text": ')
    assert "JSON parse error" in refused(capsys, script, "--dataset_name", file, "--output_dir", tmp_path / "out")


def test_measurements_are_no_classes(tmp_path: Path, capsys: Any) -> None:
    """A regression would be trained as a classifier with a class for each value."""
    file = json_lines(tmp_path / "rows.jsonl", text=WORDS, label=[i / 7 for i in range(40)])
    for script in LABELS:
        said = refused(capsys, script, "--dataset_name", file, "--output_dir", tmp_path / "out")
        assert "the column 'label' has no classes: it is Value('float64')" in said


@pytest.mark.parametrize("script", IMAGES)
def test_gray_of_16_bits_keeps_its_values_and_a_damaged_file_is_named(script: str, tmp_path: Path) -> None:
    """X-rays would be white, without a word, and one file of thousands be damaged, without a name."""
    to_rgb = runpy.run_path(str(RECIPES / f"{script}.py"), run_name="recipe")["to_rgb"]
    gray = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    pixels = np.asarray(to_rgb({"path": str(tmp_path / "gray.png"), "bytes": None}))
    assert np.abs(pixels - gray[..., None] / 257).max() <= 1
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3)).astype(np.uint8)).save(tmp_path / "a.jpg")
    cut = (tmp_path / "a.jpg").read_bytes()[:2000]
    for name, content in {"cut.jpg": cut, "page.png": b"<html>", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            to_rgb({"path": str(tmp_path / name), "bytes": None})
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            to_rgb({"path": name, "bytes": content})


@pytest.mark.parametrize("script", IMAGES)
def test_what_was_trained_is_saved_before_a_damaged_image_ends_its_evaluation(script: str, tmp_path: Path) -> None:
    """Hours of training would be lost at the first test image that cannot be read."""
    given = images(tmp_path)
    damaged = tmp_path / "images" / "test" / "dark" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:400])
    arguments = ["--quick", *(word for pair in given.arguments.items() for word in pair), "--report_to", "none"]
    with pytest.raises(ValueError, match=f"{damaged} cannot be read"):
        in_this_process(script, *arguments, "--output_dir", tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "dark", 1: "light"}
    assert furthest(weights(tmp_path / "out"), weights(tmp_path / "out" / "checkpoint-2")) > 0


@pytest.mark.parametrize("script", IMAGES)
def test_images_of_all_modes_are_trained_on(script: str, tmp_path: Path) -> None:
    """A folder of pictures as they come would end at the first that is gray or has a transparent background."""
    model = images(tmp_path).arguments["--model_name_or_path"]
    noise = np.random.default_rng(0)
    for name in ("cats", "cows", "dogs"):  # the model has two classes
        for number in range(8):
            file = tmp_path / "own" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 255, (20, 24, 4)).astype(np.uint8)
            Image.fromarray(pixels, "RGBA").convert(["RGBA", "L", "P", "LA", "RGB"][number % 5]).save(file)
    out = tmp_path / "out"
    arguments = ["--quick", "--model_name_or_path", model, "--dataset_name", tmp_path / "own", "--output_dir", out]
    assert in_this_process(script, *arguments) == 0
    assert AutoConfig.from_pretrained(out).id2label == {0: "cats", 1: "cows", 2: "dogs"}


def test_a_column_without_images_is_one_clear_line(tmp_path: Path, capsys: Any) -> None:
    """A table of file names would end in an attribute error of a word."""
    json_lines(tmp_path / "own" / "train.jsonl", image=WORDS, label=[i % 2 for i in range(40)])
    for script in IMAGES:
        said = refused(capsys, script, "--dataset_name", tmp_path / "own", "--output_dir", tmp_path / "out")
        assert "the column 'image' has no images: it is Value('string')" in said


@pytest.mark.parametrize("script", [*LABELS, "causal_lm"])
def test_a_decoder_is_trained_without_a_token_for_padding(script: str, tmp_path: Path) -> None:
    """GPT-2 would be refused: its tokenizer pads with nothing, and its embedding is called wte."""
    size = tokenizer_of_minilm(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": None}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").pad_token is None
    GPT2Model(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path / "model")
    file = json_lines(tmp_path / "rows.jsonl", text=WORDS, label=[i % 2 for i in range(40)])
    arguments = ["--model_name_or_path", tmp_path / "model", "--dataset_name", file, "--output_dir", tmp_path / "out"]
    rounds = ["--per_round", 2] if script == "data_selection" else []  # whose first two may be of one class
    assert in_this_process(script, "--quick", *arguments, *rounds) == 0


def test_what_would_end_a_training_later_is_refused_before(tmp_path: Path, capsys: Any) -> None:
    """Hours of training would end in a traceback: no checkpoint to go on from, no folder to write to, no tracker."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    missing = next(name for name in ("wandb", "clearml", "dvclive", "comet_ml") if not importlib.util.find_spec(name))
    faults = {
        "there is no checkpoint in": ["--resume_from_checkpoint", tmp_path / "empty"],
        "Not a directory": ["--output_dir", tmp_path / "file" / "out"],
        "File exists": ["--output_dir", tmp_path / "file"],
        "install": ["--report_to", missing],
        "is not supported|Unsupported": ["--report_to", "nothing"],
    }
    for name in OWN:
        (tmp_path / name).mkdir()
    given = {name: OWN[name](tmp_path / name).arguments for name in OWN}
    rows = json_lines(tmp_path / "rows.jsonl", text=WORDS, label=[i % 2 for i in range(40)])
    given["accelerate_loop"] = {**given["text_classification"], "--dataset_name": rows}
    del given["accelerate_loop"]["--text_columns"], given["accelerate_loop"]["--label_column"]
    for script, own in given.items():
        words = [word for pair in own.items() for word in pair]
        for expected, fault in faults.items():
            said = refused(capsys, script, *words, "--output_dir", tmp_path / "out", *fault)
            assert any(part in said for part in expected.split("|")), (script, said)
        assert not list((tmp_path / "out").glob("*")), script


def test_sentence_embeddings_ask_no_hub_about_a_folder(tmp_path: Path) -> None:
    """The default would wait for the Hub at every save where the network is bad, with no end."""
    from huggingface_hub import constants

    asked: list[str] = []
    listening = True

    def hear(event: str, details: tuple[Any, ...]) -> None:
        if listening and event == "socket.getaddrinfo":
            asked.append(str(details[0]))

    sys.addaudithook(hear)  # for good, and so it can be deaf
    own = OWN["sentence_embeddings"](tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        try:
            assert in_this_process("sentence_embeddings", "--quick", *own.given(tmp_path / "out")) == 0
        finally:
            listening = False
    assert asked == []

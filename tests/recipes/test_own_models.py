"""A user's own model as it comes: without its tokenizer, too short for the texts, beside another's files."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.recipes.own import IMAGES, LABELS, TEXTS, WORDS, json_lines, refused
from tests.recipes.scripts import OWN, RECIPES, furthest, images, in_this_process, tokenizer_of_minilm, weights

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]
SIZES = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "d_kv": 16, "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 2, "num_heads": 2, "n_head": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "intermediate_size": 64, "d_ff": 64,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
AUTO = {"gpt2": AutoModelForCausalLM, "llama": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}


def small(kind: str, folder: Path, **sizes: int) -> Path:
    """A small model as save_pretrained leaves it, alone."""
    known = AutoConfig.for_model(kind)
    known = type(known)(**{name: size for name, size in (SIZES | sizes).items() if hasattr(known, name)})
    AUTO.get(kind, AutoModel).from_config(known).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_a_model_without_its_tokenizer_is_refused_before_the_training(kind: str, tmp_path: Path, capsys: Any) -> None:
    """A model would be trained on nothing but [UNK], in silence, or end in a traceback that names no file."""
    model = small(kind, tmp_path / "model", vocab_size=200)
    file = json_lines(tmp_path / "rows.jsonl", said=WORDS * 2, text=WORDS * 2, label=[i % 2 for i in range(80)])
    for script in (*TEXTS, "accelerate_loop"):
        columns = [word for pair in zip(TEXTS.get(script, []), ("said", "text"), strict=False) for word in pair]
        given = ["--model_name_or_path", model, "--dataset_name", file, "--output_dir", tmp_path / "out", *columns]
        said, _, _ = refused(capsys, script, *given).partition("(arguments")
        assert str(model) in said, (script, said)
        assert "tokenizer" in said, (script, said)
        assert not list(tmp_path.glob("out/*.safetensors")), script


@pytest.mark.parametrize("script", IMAGES)
def test_a_model_without_its_processor_is_refused_before_the_training(
    script: str, tmp_path: Path, capsys: Any
) -> None:
    """Images would be scaled otherwise than those that the model knows, or end in a traceback."""
    own = images(tmp_path).arguments
    (own["--model_name_or_path"] / "preprocessor_config.json").unlink()
    words = [word for pair in own.items() for word in pair]
    said = refused(capsys, script, *words, "--output_dir", tmp_path / "out")
    assert f"'{own['--model_name_or_path']}'" in said
    assert "preprocessor_config.json" in said


@pytest.mark.parametrize("script", [*LABELS, "seq2seq"])
def test_a_text_longer_than_the_model_takes_is_cut(script: str, tmp_path: Path) -> None:
    """A training would end in an index error at the first long text, which may be hours away."""
    size = tokenizer_of_minilm(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    del config["model_max_length"]
    file.write_text(json.dumps(config))
    small(
        "bart" if script == "seq2seq" else "roberta", tmp_path / "model", vocab_size=size, max_position_embeddings=18
    )
    long = [word * 40 for word in WORDS]
    rows = json_lines(tmp_path / "rows.jsonl", text=long, word=long, phonemes=long, label=[i % 2 for i in range(40)])
    more = {"seq2seq": ["--generation_max_length", 8], "data_selection": ["--per_round", 4]}.get(script, [])
    given = [
        "--model_name_or_path",
        tmp_path / "model",
        "--dataset_name",
        rows,
        "--output_dir",
        tmp_path / "out",
        *more,
    ]
    assert in_this_process(script, "--quick", *given) == 0


def test_an_empty_text_has_an_embedding(tmp_path: Path) -> None:
    """A text of no tokens would be a mean over none, and every distance to it, and so every choice, no number."""
    folder = small("gpt2", tmp_path, vocab_size=300)
    runpy.run_path(str(RECIPES / "offline.py"))["byte_pairs"](WORDS, 300).save_pretrained(folder)
    embed = runpy.run_path(str(RECIPES / "data_selection.py"), run_name="recipe")["embed"]
    assert torch.isfinite(embed(["", *WORDS], str(folder))).all()


@pytest.mark.parametrize(
    ("script", "adapter"), [("text_classification", ["--lora_r", 4]), ("causal_lm", ["--use_peft"])]
)
def test_an_adapter_and_a_whole_model_do_not_share_a_folder(
    script: str, adapter: list[Any], tmp_path: Path, capsys: Any
) -> None:
    """from_pretrained would load the adapter of an older training in place of the model that was trained."""
    own = [word for pair in OWN[script](tmp_path).arguments.items() for word in pair]
    for there, asked, expected in (("adapter_", [], "with an"), ("", adapter, "without an")):
        out = tmp_path / f"{there}out"
        out.mkdir()
        (out / f"{there}model.safetensors").write_bytes(b"")
        said = refused(capsys, script, *own, "--output_dir", out, *asked)
        assert f"{out} has a model {expected} adapter in it: give another --output_dir" in said
    refusal = refused(capsys, "upcycle", "--use_peft", "--output_dir", tmp_path / "mixture")
    assert "experts are trained in full" in refusal  # and the adapter that was asked for is not left out in silence


def test_federated_steps_on_all_rows_are_steps_of_one_training(tmp_path: Path, capsys: Any) -> None:
    """Clients would weigh the same whatever they have, or begin the learning rate's schedule anew in each round.

    One step of each client on all of its rows, averaged by rows, is one step on all rows (McMahan et al., FedSGD).
    """
    given = images(tmp_path)
    steps = {"max_grad_norm": 0, "per_device_train_batch_size": 32, "save_strategy": "no"}
    plain = given.given(tmp_path / "plain", **steps, max_steps=2)
    rounds = given.given(tmp_path / "rounds", **steps, max_steps=1, num_train_epochs=2)
    assert in_this_process("class_prototypes", *plain) == 0
    assert in_this_process("class_prototypes", *rounds, "--federated", 3) == 0  # of 12, 10 and 10 rows
    assert "round 2 of 2:" in capsys.readouterr().out
    start = AutoModel.from_pretrained(tmp_path / "model").state_dict()
    trained = weights(tmp_path / "plain")
    assert max((trained[f"vit.{name}"] - start[name]).abs().max() for name in start if f"vit.{name}" in trained) > 1e-3
    assert furthest(trained, weights(tmp_path / "rounds")) < 2e-6


def test_federated_rounds_are_one_at_least_and_not_resumed(tmp_path: Path, capsys: Any) -> None:
    """Nothing would be trained, or a training that was stopped would begin anew in silence."""
    given = images(tmp_path)
    arguments = given.given(tmp_path / "out", num_train_epochs=0.01, federated=2)
    assert in_this_process("class_prototypes", *arguments) == 0
    assert "round 1 of 1:" in capsys.readouterr().out
    (tmp_path / "checkpoint-2").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "checkpoint-2" / name).write_bytes((tmp_path / "out" / name).read_bytes())
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    assert "--federated saves no checkpoints" in refused(
        capsys, "class_prototypes", *arguments, "--resume_from_checkpoint", tmp_path / "checkpoint-2"
    )


def test_a_loop_trains_or_says_that_nothing_is_left(tmp_path: Path, capsys: Any) -> None:
    """A loop would save what it was given as trained: after its last epoch, or with few batches at a rate of zero."""
    own = OWN["text_classification"](tmp_path).arguments
    rows = json_lines(tmp_path / "rows.jsonl", text=WORDS, label=[i % 2 for i in range(40)])
    out = tmp_path / "out"
    given = ["--model_name_or_path", own["--model_name_or_path"], "--dataset_name", rows, "--output_dir", out]
    assert in_this_process("accelerate_loop", "--quick", *given, "--gradient_accumulation_steps", 50) == 0
    assert furthest(weights(out / "epoch_0"), weights(out / "epoch_1")) > 1e-6
    said = refused(capsys, "accelerate_loop", *given, "--resume_from_checkpoint", out / "epoch_1")
    assert "nothing is left to train: epoch 2 is not among --num_epochs 2" in said
    assert "of two rows at least" in refused(capsys, "data_selection", *given, "--per_round", 1)

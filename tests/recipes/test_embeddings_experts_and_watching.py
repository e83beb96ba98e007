"""The recipes beside those of a Trainer with a penalty on weights: what is of their own."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import hf_mhe
from tests.recipes.scripts import RECIPES, dense, furthest, in_this_process, sentences, watched_images, weights

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]


def of_script(name: str) -> dict[str, Any]:
    """The functions of a recipe."""
    return runpy.run_path(str(RECIPES / f"{name}.py"), run_name="recipe")


def logged(folder: Path) -> list[dict[str, Any]]:
    """The history of a training of four steps."""
    return json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]


def test_each_arm_adds_what_it_is_named_after_and_nothing_else(tmp_path: Path, capsys: Any) -> None:
    """The arms that are compared would be the same training, or the plain one would be regularized."""
    given = sentences(tmp_path)
    for arm, weight in (("none", 1), ("energy", 1), ("energy", 0), ("gor", 1)):
        arguments = given.given(tmp_path / f"{arm}{weight}", arm=arm, arm_weight=weight)
        assert in_this_process("sentence_embeddings", *arguments, "--mhe_hidden_weight", 0) == 0
        said = capsys.readouterr().out
        assert all(f"{name}_ndcg@10 " in said for name in ("float32", "int8", "binary")), said
        assert "equivalent_dimension " in said
    trained = {name: weights(tmp_path / name) for name in ("none1", "energy1", "energy0", "gor1")}
    assert furthest(trained["none1"], trained["energy0"]) == 0
    assert all(
        furthest(trained[one], trained[other]) > 1e-5
        for one, other in (("none1", "energy1"), ("none1", "gor1"), ("energy1", "gor1"))
    )
    parts = {name: set().union(*logged(tmp_path / name)) & {"energy_loss", "gor_mean"} for name in trained}
    assert parts == {"none1": set(), "energy1": {"energy_loss"}, "energy0": set(), "gor1": {"gor_mean"}}


def test_scores_in_a_precision_are_those_of_the_stored_codes() -> None:
    """NDCG in int8 and binary would be that of other codes than a vector database stores."""
    quantize_embeddings = pytest.importorskip("sentence_transformers").quantize_embeddings
    quantized = of_script("sentence_embeddings")["quantized"]
    torch.manual_seed(0)
    queries, corpus = torch.randn(3, 16), torch.randn(200, 16)
    bits = [np.unpackbits(quantize_embeddings(rows.numpy(), "ubinary"), axis=1) for rows in (queries, corpus)]
    hamming = (bits[0][:, None] != bits[1][None]).sum(-1)
    torch.testing.assert_close(quantized("ubinary")(queries, corpus), torch.from_numpy(1 - 2 * hamming / 16).float())
    least, most = corpus.amin(0), corpus.amax(0)
    codes = [
        ((rows - least) / ((most - least) / 255)).floor().clamp(0, 255).double() - 128 for rows in (queries, corpus)
    ]
    expected = torch.nn.functional.normalize(codes[0]) @ torch.nn.functional.normalize(codes[1]).t()
    torch.testing.assert_close(quantized("int8")(queries, corpus).double(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("config", "model"), [(LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM)])
def test_a_mixture_begins_with_what_the_dense_model_says(config: Any, model: Any, tied: bool) -> None:
    """Upcycling would lose what was trained."""
    script = of_script("upcycle")
    torch.manual_seed(0)
    llama = model(
        config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            rms_norm_eps=1e-3,
            bos_token_id=3,
            eos_token_id=4,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    ).eval()
    mixture = script["upcycle"](llama, script["ScriptArguments"](num_experts=3)).eval()
    tokens = torch.randint(50, (2, 9))
    torch.testing.assert_close(mixture(tokens).logits, llama(tokens).logits)
    assert mixture.config.tie_word_embeddings == tied
    assert mixture.config.eos_token_id == 4
    assert script["cosines"](mixture) == pytest.approx([1.0, 1.0])


def test_experts_end_further_apart_than_without_the_penalty(tmp_path: Path, capsys: Any) -> None:
    """The recipe would show two trainings that are the same, or the wrong one of them first."""
    given = dense(tmp_path).given(tmp_path / "out", mhe_hidden_weight=0, mhe_across_weight=10, compare=True)
    assert in_this_process("upcycle", *given) == 0
    said = re.findall(r"cosine of experts by layer, (\w+): (\S+) ([\d.]+)", capsys.readouterr().out)
    found = {name: [float(cosine) for cosine in cosines] for name, *cosines in said}
    assert found["before"] == [1, 1]
    assert max(found["with"]) < min(found["without"]) - 5e-4
    assert max(found["without"]) <= 1
    assert not list((tmp_path / "out" / "without").glob("checkpoint-*"))


def test_watching_logs_every_layer_and_changes_nothing(tmp_path: Path) -> None:
    """A training would be another one for being watched, or the figure and the log would be of other weights."""
    from PIL import Image

    given = watched_images(tmp_path)
    plain = given.given(tmp_path / "plain", mhe_hidden_weight=0, mhe_output_weight=0)
    assert in_this_process("image_classification", *plain) == 0
    watched = given.given(tmp_path / "watched", report_to="tensorboard", every_n_steps=1, share_of_time=1)
    assert in_this_process("watch_training", *watched) == 0
    assert furthest(weights(tmp_path / "plain"), weights(tmp_path / "watched")) == 0

    records = [record for record in logged(tmp_path / "watched") if "mhe_spread" in record]
    steps = [record["step"] for record in records]
    assert steps[0] == 1
    assert steps[-1] == 4  # between them a step is left out where a measurement takes longer than it
    report = hf_mhe.analyze(tmp_path / "watched")
    by_name = {group.name: group.spread for group in report.groups}
    spreads = {name.partition("/")[2]: value for name, value in records[-1].items() if name.startswith("mhe_spread/")}
    assert len(spreads) > 8
    for name, spread in spreads.items():
        assert spread == pytest.approx(by_name[name], rel=1e-3), name
    pixels = np.asarray(Image.open(tmp_path / "watched" / "spread.png").convert("L"))
    assert pixels.std() > 5, "a blank figure"
    assert list((tmp_path / "watched").rglob("events.out.tfevents*"))


def test_the_glosses_are_those_of_wordnet() -> None:
    """The default would train on a licence, on examples, or on words with a place marked behind them."""
    offline = of_script("offline")

    if not offline["WORDNET"].is_dir():
        pytest.skip("apt-get install wordnet-base")
    parts = offline["glosses"]()
    known = {row["lemma"]: row["gloss"] for rows in parts.values() for row in rows}
    assert known["giddiness"] == "an impulsive scatterbrained manner"
    assert len(known) == sum(map(len, parts.values())) > 50_000
    assert not any("(p)" in lemma or "_" in lemma or '"' in gloss[:1] for lemma, gloss in known.items())


BAD = {
    "sentence_embeddings": (["--arm", "orthogonal"], "invalid choice: 'orthogonal'"),
    "upcycle": (["--num_experts_per_tok", 9], "9 experts for a token cannot be chosen among 4"),
}


@pytest.mark.parametrize("script", BAD)
def test_bad_input_is_one_clear_line(script: str, tmp_path: Path, capsys: Any) -> None:
    """A typing error would end in pages of traceback, or in a status that says that all went well."""
    arguments, expected = BAD[script]
    capsys.readouterr()
    assert in_this_process(script, "--quick", "--output_dir", tmp_path / "out", *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{script}.py: error: ")
    assert expected in last

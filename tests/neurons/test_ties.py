"""Tied weights of a checkpoint are one matrix or several as they are in the model that loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hf_mhe
from hf_mhe.errors import MHEError
from hf_mhe.neurons import checkpoint_groups
from tests.alike import assert_alike
from tests.neurons.stored import assert_same, described, opened

Build = Callable[..., nn.Module]
State = dict[str, Tensor]

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHARED, ENCODER, DECODER = "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"

# architecture; stored weights of other values; weights that are not stored; the tables and heads that there are then
STORED = {
    "twice": ("llama", (), (), {"model.embed_tokens"}),
    "another head": ("llama", (HEAD,), (), {"model.embed_tokens", "lm_head"}),
    "head alone": ("llama", (), (TABLE,), {"model.embed_tokens"}),
    "table alone": ("llama", (), (HEAD,), {"model.embed_tokens"}),
    "gpt2": ("gpt2", ("lm_head.weight",), (), {"transformer.wte", "transformer.wpe", "lm_head"}),
    "bert": ("bert_mlm", ("cls.predictions.decoder.weight",), (), {"cls.predictions.decoder"}),
    "t5, four times": ("t5", (), (), {"shared"}),
    "t5, another head": ("t5", (HEAD,), (), {"shared", "lm_head"}),
    "t5, another encoder": ("t5", (ENCODER,), (), {"shared", "encoder.embed_tokens"}),
    "t5, another decoder": ("t5", (DECODER,), (ENCODER,), {"shared", "decoder.embed_tokens"}),
    "t5, all others": ("t5", (ENCODER, DECODER, HEAD), (), {"shared", *(n[:-7] for n in (ENCODER, DECODER, HEAD))}),
    "t5, without the shared": ("t5", (HEAD,), (SHARED,), {"shared", "lm_head"}),
    "t5, decoder and head": ("t5", (HEAD,), (SHARED, ENCODER), {"shared", "lm_head"}),
    "bart, another head": ("bart", (HEAD,), (), {"model.shared", "lm_head"}),
    "bart, another encoder": ("bart", ("model." + ENCODER,), (), {"model.shared", "model.encoder.embed_tokens"}),
    "llava, another head": ("llava", (HEAD,), (), {"model.language_model.embed_tokens", "lm_head"}),
    "llava, twice": ("llava", (), (), {"model.language_model.embed_tokens"}),
}  # fmt: skip


@pytest.fixture
def tied(build: Build) -> Callable[[str], Any]:
    """A small model whose config ties its embeddings."""

    def make(name: str) -> Any:
        torch.manual_seed(0)
        if name == "llava":
            return _llava()
        if name == "bert_mlm":
            from transformers import BertForMaskedLM

            return BertForMaskedLM(build("bert", device="meta").config)
        return build(name, tie_word_embeddings=True)

    return make


def _llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from tests.neurons.families.family import LLAMA, VISION

    text = LlamaConfig(**{**LLAMA, "tie_word_embeddings": True})
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text, tie_word_embeddings=True)
    return LlavaForConditionalGeneration(config)


def save(model: Any, folder: Path, changed: tuple[str, ...], dropped: tuple[str, ...], rows: int = 0) -> State:
    """Store every name of every weight; `changed` ones by chance, with that many rows more; without the `dropped`."""
    model.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in dropped}
    generator = torch.Generator().manual_seed(1)
    for name in changed:
        n, d = state[name].shape
        state[name] = torch.randn(n + rows, d, generator=generator)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return state


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("case", STORED)
def test_a_folder_has_the_matrices_of_the_model_that_loads_it(
    case: str, tied: Callable[[str], Any], tmp_path: Path
) -> None:
    """Else a head of its own would not be measured, or the table with the values of the head."""
    name, changed, dropped, names = STORED[case]
    model = tied(name)
    save(model, tmp_path, changed, dropped)
    loaded = type(model).from_pretrained(tmp_path)
    with opened(tmp_path) as (shapes, get, config):
        found = checkpoint_groups(shapes, config, get=get)
        assert_same(loaded, found, shapes, get)
        assert_same(loaded, checkpoint_groups(shapes, config, get=get, by_head=True), shapes, get, by_head=True)
    assert names <= {group.name for group in found.groups if group.role != "hidden"}
    assert_alike(hf_mhe.analyze(loaded), hf_mhe.analyze(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_decide_and_not_their_bytes(dtype: torch.dtype, tied: Callable[[str], Any], tmp_path: Path) -> None:
    """Else a zero with a minus sign would untie a head, or a difference in one element would not."""
    model = tied("llama").to(dtype)
    state = save(model, tmp_path, (), ())
    for value, groups in ((-0.0, 1), (1e-3, 2)):
        state[TABLE][59, 31], state[HEAD][59, 31] = 0.0, value
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        loaded = type(model).from_pretrained(tmp_path)
        found = hf_mhe.analyze(tmp_path)
        assert_alike(hf_mhe.analyze(loaded), found)
        assert sum(group.n + group.dead == 60 for group in found.groups) == groups


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("llama", HEAD),
        ("llama", TABLE),
        ("t5", HEAD),
        ("t5", ENCODER),
        ("t5", SHARED),
        ("bart", HEAD),
        ("llava", HEAD),
    ],
)
@pytest.mark.parametrize("with_values", [True, False])
def test_a_tied_weight_of_another_length_is_refused(
    with_values: bool, name: str, weight: str, tied: Callable[[str], Any], tmp_path: Path
) -> None:
    """Else a checkpoint that no library loads would be measured, by whichever of its two vocabularies came first."""
    model = tied(name)
    weight = f"model.{weight}" if name == "bart" and weight != HEAD else weight
    save(model, tmp_path, (weight,), (), rows=10)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path)
    with (
        opened(tmp_path) as (shapes, get, config),
        pytest.raises(MHEError, match=rf"tensor {weight} of the checkpoint has shape \(70, 32\), but .* \(60, 32\)"),
    ):
        checkpoint_groups(shapes, config, get=get if with_values else None)


def test_without_a_tie_what_is_not_stored_is_not_made_up(build: Build, tmp_path: Path) -> None:
    """Else a head that was never trained would be measured as the embedding."""
    save(build("llama", tie_word_embeddings=False), tmp_path, (), (HEAD,))
    found = hf_mhe.analyze(tmp_path)
    assert found.skipped[HEAD] == "not in the checkpoint: newly initialised by LlamaForCausalLM"
    assert [group.name for group in found.groups if group.role != "hidden"] == ["model.embed_tokens"]


def test_a_tie_is_read_as_the_config_of_the_part_says(tied: Callable[[str], Any], tmp_path: Path) -> None:
    """Else the head of a vision-language model would be tied by the wrong one of its two configs."""
    model = tied("llava")
    save(model, tmp_path, (HEAD,), ())
    config = json.loads((tmp_path / "config.json").read_text())
    for whole, text in ((True, False), (False, True), (False, False)):
        changed = {**config, "tie_word_embeddings": whole}
        changed["text_config"] = {**config["text_config"], "tie_word_embeddings": text}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        loaded = type(model).from_pretrained(tmp_path)
        assert_alike(hf_mhe.analyze(loaded), hf_mhe.analyze(tmp_path))


def test_without_values_stored_names_are_taken_as_the_config_ties_them(
    tied: Callable[[str], Any], tmp_path: Path
) -> None:
    """Else names and shapes alone, which is all that a header tells, would give other groups than the config."""
    model = tied("llama")
    save(model, tmp_path, (HEAD,), ())
    with opened(tmp_path) as (shapes, _, config):
        assert described(checkpoint_groups(shapes, config).groups) == [
            (g.name, g.kind, g.role, g.n, g.d, g.aliases, g.module) for g in hf_mhe.neurons.neuron_groups(model)
        ]

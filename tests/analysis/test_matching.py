"""A model is matched with itself inside another: under a head, in a pipeline, behind a wrapper; with nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import hf_mhe
from hf_mhe.analysis import Comparison, EnergyReport
from hf_mhe.errors import MHEError
from tests.neurons.families.table import FAMILIES

SMALL = {
    "vocab_size": 90,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}


def renamed(report: EnergyReport, rename: Callable[[str], str]) -> EnergyReport:
    """The report of the same model under other names, as one that was saved has them."""
    groups = [dataclasses.replace(group, name=rename(group.name)) for group in report.groups]
    return dataclasses.replace(report, groups=groups)


def matched(comparison: Comparison) -> dict[str, str]:
    return {row.name: row.name_before for row in comparison.rows}


def assert_all_of(small: EnergyReport, large: EnergyReport, tmp_path: Path, **names: Callable[[str], str]) -> None:
    """Every group of `small` is matched with its own in `large`, in both orders, and between the saved reports."""
    of_large = names["of_large"]
    expected = {of_large(group.name): group.name for group in small.groups}
    files = [report.save(tmp_path / f"{name}.json") for name, report in (("small", small), ("large", large))]
    for one, other in ((small, large), files):
        comparison = hf_mhe.compare(one, other)
        assert matched(comparison) == expected
        assert comparison.only_before == []
        assert comparison.only_after == sorted({group.name for group in large.groups} - set(expected))
        assert all(row.before.energy == pytest.approx(row.after.energy, nan_ok=True) for row in comparison.rows)
        back = hf_mhe.compare(other, one)
        assert matched(back) == {name: whole for whole, name in expected.items()}
        assert (back.only_before, back.only_after) == (comparison.only_after, [])
    if any(of_large(group.name) != group.name for group in small.groups):
        (note,) = comparison.notes
        assert note.startswith(f"{sum(of_large(group.name) != group.name for group in small.groups)} layers go by")


def _base(model: nn.Module) -> nn.Module | None:
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    return base if isinstance(base, nn.Module) and base is not model else None


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_bare_model_is_matched_with_itself_under_a_head(name: str, tmp_path: Path) -> None:
    """Else a fine-tuned model could not be compared with the model that it was fine-tuned from."""
    model: Any = FAMILIES[name].build()
    base = _base(model)
    if base is None:
        pytest.skip(f"{type(model).__name__} is a bare model")
    small, large = hf_mhe.analyze(base), hf_mhe.analyze(model)
    assert_all_of(small, large, tmp_path, of_large=lambda group: f"{model.base_model_prefix}.{group}")


WRAPPERS = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "base_model.model.",
    "0.auto_model.",
    "0.model.",
    "unet.",
    "a.b.",
]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_prefix_is_looked_through(prefix: str, report: EnergyReport, tmp_path: Path) -> None:
    """Else a report of a wrapped model, or of a model inside a pipeline, would have nothing in common with it."""
    assert_all_of(report, renamed(report, lambda name: prefix + name), tmp_path, of_large=lambda name: prefix + name)


@pytest.mark.parametrize("prefix", WRAPPERS[:-2])
def test_wrappers_are_looked_through_on_one_side_and_a_head_on_the_other(prefix: str, tmp_path: Path) -> None:
    """Else the base as a sentence encoder, or as it was trained, could not be compared with the fine-tuned model."""
    torch.manual_seed(0)
    model = FAMILIES["bert"].build()
    bare, large = hf_mhe.analyze(model.bert), hf_mhe.analyze(model)
    comparison = hf_mhe.compare(renamed(bare, lambda name: prefix + name), large)
    assert matched(comparison) == {f"bert.{group.name}": prefix + group.name for group in bare.groups}
    assert comparison.only_after == ["classifier"]


def test_a_language_model_is_found_in_a_vision_language_model(tmp_path: Path) -> None:
    """Else what multimodal training did to a language model could not be seen; `lm_head` alone is on both sides."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    small: Any = FAMILIES["llama"].build()
    vision = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4
    )
    text = LlamaConfig(**FAMILIES["llama"].arguments)
    large = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=False, vision_feature_layer=-1)
    )
    large.model.language_model.load_state_dict(small.model.state_dict())
    large.lm_head.load_state_dict(small.lm_head.state_dict())

    def inside(name: str) -> str:
        return name.replace("model.", "model.language_model.", 1)

    assert_all_of(hf_mhe.analyze(small), hf_mhe.analyze(large), tmp_path, of_large=inside)
    bare = hf_mhe.analyze(small.model)
    assert_all_of(bare, hf_mhe.analyze(large), tmp_path, of_large=lambda name: f"model.language_model.{name}")


def test_an_encoder_alone_is_matched_with_the_whole(tmp_path: Path) -> None:
    """Else names that both sides have would be given up for others that fit as well."""
    from transformers import T5EncoderModel

    whole: Any = FAMILIES["t5"].build()
    alone = T5EncoderModel(whole.config)
    missing, _ = alone.load_state_dict(whole.state_dict(), strict=False)
    assert missing == []
    assert_all_of(hf_mhe.analyze(alone), hf_mhe.analyze(whole), tmp_path, of_large=lambda name: name)


def test_a_tied_head_is_on_the_side_where_it_is_a_matrix_of_its_own() -> None:
    """Else a head that was untied in training would stand beside the embedding, or spoil the comparison."""
    tied, untied = (FAMILIES["gpt2"].build(tie_word_embeddings=tie) for tie in (True, False))
    comparison = hf_mhe.compare(tied, untied)
    assert len(comparison.rows) == len(hf_mhe.analyze(tied).groups)
    assert (comparison.only_before, comparison.only_after) == ([], ["lm_head"])
    assert hf_mhe.compare(tied.transformer, untied).only_after == ["lm_head"]


def test_a_vocabulary_that_has_grown_is_matched_and_said() -> None:
    """Else two scores of tables of different length would stand side by side as if they were of one."""
    torch.manual_seed(0)
    before = BertModel(BertConfig(**SMALL))
    after = BertModel(BertConfig(**{**SMALL, "vocab_size": 97}))
    for one in (before, renamed(hf_mhe.analyze(before), lambda name: f"bert.{name}")):
        comparison = hf_mhe.compare(one, after)
        assert (comparison.only_before, comparison.only_after) == ([], [])
        note = comparison.notes[-1]
        assert note == (
            "1 layers have another shape on the two sides, such as embeddings.word_embeddings: "
            "90 x 24 before, 97 x 24 after"
        )
        (row,) = [row for row in comparison.to_dict()["rows"] if row["name"] == "embeddings.word_embeddings"]
        assert (row["n"], row["before"]["n"], row["after"]["n"]) == (96, 89, 96)  # a row of padding is dead
        frame = comparison.to_pandas().set_index("name").loc["embeddings.word_embeddings"]
        assert (frame["n"], frame["n_before"]) == (96, 89)


def test_both_names_are_kept_where_they_differ(report: EnergyReport, tmp_path: Path) -> None:
    """Else the JSON, the table and the page of a comparison would say of a layer that it has no name of its own."""
    comparison = hf_mhe.compare(renamed(report, lambda name: f"part.{name}"), report)
    rows = comparison.to_dict()["rows"]
    assert all(row["before"]["name"] == f"part.{row['name']}" == f"part.{row['after']['name']}" for row in rows)
    assert comparison.to_dict()["notes"] == list(comparison.notes)
    frame = comparison.to_pandas()
    assert list(frame["name_before"]) == [f"part.{name}" for name in frame["name"]]
    page = comparison.to_html()
    assert "layer before" in page
    assert f"part.{report.groups[0].name}" in page
    assert "layer before" not in hf_mhe.compare(report, report).to_html()


class Two(nn.Module):
    """Two models side by side."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        for name, model in models.items():
            setattr(self, name, model)


def test_a_model_that_may_be_either_of_two_is_an_error() -> None:
    """Else a teacher would be compared with its student in silence, by whichever was found first."""
    torch.manual_seed(0)
    one, other, wide = (BertModel(BertConfig(**{**SMALL, "hidden_size": size})) for size in (24, 24, 32))
    base = BertModel(BertConfig(**SMALL))
    both = Two(student=one, teacher=other)
    for sides in ((base, both), (both, base)):
        with pytest.raises(
            MHEError, match=r"stands in several places.*student\.\S+ or teacher\..* of these parts alone"
        ):
            hf_mhe.compare(*sides)
    found = hf_mhe.compare(base, Two(student=one, teacher=wide))  # only one of them has its shapes
    assert matched(found) == {f"student.{group.name}": group.name for group in hf_mhe.analyze(base).groups}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bert.{}", "roberta.{}"),
        ("layers.0.{}", "layers.1.{}"),
        ("vision_tower.{}", "model.language_model.{}"),
        ("encoder.{}", "decoder.{}"),
    ],
)
def test_layers_of_other_names_are_not_set_side_by_side(before: str, after: str, report: EnergyReport) -> None:
    """Else two different layers would pass for one before and after training."""
    sides = [renamed(report, form.format) for form in (before, after)]
    with pytest.raises(MHEError, match=r"no group in common: before has .*, after has "):
        hf_mhe.compare(*sides)


def test_a_name_that_happens_to_be_alike_is_not_enough(report: EnergyReport) -> None:
    """Else one layer of a large model would be matched with a stranger, and the rest of the model listed as lost."""
    model = nn.ModuleDict({f"layer_{k}": nn.Linear(24, 24) for k in range(16)})
    model["dense"] = nn.Linear(24, 24)
    with pytest.raises(MHEError, match="no group in common"):
        hf_mhe.compare(nn.ModuleDict(model), renamed(report, lambda name: name.replace("bert.pooler", "pooler")))


def test_a_shallower_model_is_matched_layer_by_layer() -> None:
    """Else a pruned or a distilled model would be matched with the wrong layers of its base."""
    torch.manual_seed(0)
    base = BertModel(BertConfig(**{**SMALL, "num_hidden_layers": 4}))
    small = Two(bert=BertModel(BertConfig(**SMALL)), classifier=nn.Linear(24, 3))
    comparison = hf_mhe.compare(base, small)
    assert matched(comparison) == {f"bert.{group.name}": group.name for group in hf_mhe.analyze(small.bert).groups}
    assert comparison.only_after == ["classifier"]
    assert {name.split(".")[2] for name in comparison.only_before} == {"2", "3"}


@pytest.mark.integrations
def test_a_pipeline_is_matched_with_its_component(tmp_path: Path) -> None:
    """Else a fine-tuned UNet could not be compared with the pipeline that it came from."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "pipeline")
    alone, whole = hf_mhe.analyze(unet), hf_mhe.analyze(tmp_path / "pipeline")
    assert_all_of(alone, whole, tmp_path, of_large=lambda name: f"unet.{name}")

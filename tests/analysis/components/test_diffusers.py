"""Folders of diffusers, one model or a whole pipeline, read as the models and pipelines that save them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_mhe
from tests.alike import assert_alike

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.integrations


@pytest.mark.slow
@pytest.mark.parametrize(
    "saved", [{}, {"max_shard_size": "100KB"}, {"variant": "fp16"}], ids=["one", "shards", "fp16"]
)
def test_a_unet_on_disk_is_the_unet_in_memory(unet: Any, saved: dict[str, Any], tmp_path: Path) -> None:
    """If this fails, a component of diffusers is read by shape, or its shards or variants are not found."""
    unet.save_pretrained(tmp_path, **saved)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("max_shard_size" in saved)
    found = hf_mhe.analyze(tmp_path, by_head=True)
    assert_alike(hf_mhe.analyze(unet, by_head=True), found)
    loaded = type(unet).from_pretrained(tmp_path, variant=saved.get("variant"))
    assert_alike(hf_mhe.analyze(loaded, by_head=True), found)
    assert found["conv_in"].kind == "conv2d"
    assert found["mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"].kind == "linear"
    assert "unknown" not in {group.kind for group in found.groups}


@pytest.mark.slow
def test_a_pipeline_on_disk_is_the_pipeline_in_memory(pipeline: Any, pipeline_folder: Path) -> None:
    """If this fails, a pipeline's layers are lost, mixed up between components, or named otherwise in memory."""
    found = hf_mhe.analyze(pipeline_folder)
    assert_alike(hf_mhe.analyze(pipeline), found)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    assert_alike(hf_mhe.analyze(loaded), found)
    components = {name: getattr(pipeline, name) for name in ("text_encoder", "unet", "vae")}
    assert {group.name.partition(".")[0] for group in found.groups} == set(components)
    for name, component in components.items():
        alone = hf_mhe.analyze(component)
        assert {g.name for g in found.groups if g.name.startswith(f"{name}.")} == {
            f"{name}.{g.name}" for g in alone.groups
        }
        for group in alone.groups:
            assert found[f"{name}.{group.name}"].energy == pytest.approx(group.energy, rel=1e-6)
        assert_alike(alone, hf_mhe.analyze(pipeline_folder / name))
    words = found["text_encoder.embeddings.token_embedding"]
    assert (words.role, words.parameters) == ("embedding", ("text_encoder.embeddings.token_embedding.weight",))


def test_components_are_chosen_by_pattern(pipeline_folder: Path) -> None:
    """If this fails, one component of a pipeline cannot be analyzed by its name."""
    found = hf_mhe.analyze(pipeline_folder, include="text_encoder", by_head=True)
    assert {group.name.partition(".")[0] for group in found.groups} == {"text_encoder"}
    assert "text_encoder.encoder.layers.1.self_attn.q_proj.head.*" in {stack.name for stack in found.stacks}


def test_a_variant_of_a_pipeline_is_found(pipeline: Any, tmp_path: Path) -> None:
    """If this fails, the half-precision files that most pipelines on the Hub offer are not read."""
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert not list(tmp_path.rglob("model.safetensors"))
    assert_alike(hf_mhe.analyze(pipeline), hf_mhe.analyze(tmp_path))


def test_a_component_in_a_pickle_is_left_out_by_name(pipeline: Any, pipeline_folder: Path, tmp_path: Path) -> None:
    """If this fails, one unreadable component costs the report on the others, or goes missing in silence."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(pipeline.vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.bin")
    found = hf_mhe.analyze(folder)
    assert {group.name.partition(".")[0] for group in found.groups} == {"text_encoder", "unet"}
    assert "diffusion_pytorch_model.bin" in found.skipped["vae"]
    assert "runs whatever code it holds" in found.skipped["vae"]
    assert any(note.startswith("vae is left out: ") for note in found.notes)


def test_older_attention_of_an_autoencoder_is_followed(tmp_path: Path) -> None:
    """If this fails, autoencoders saved before diffusers renamed their attention lose those layers."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    model.save_pretrained(tmp_path)
    expected = hf_mhe.analyze(tmp_path)
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in stored.items():
        for new, old in former.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        renamed[name] = tensor
    assert set(renamed) != set(stored)
    save_file(renamed, tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    assert_alike(hf_mhe.analyze(loaded), hf_mhe.analyze(tmp_path))
    assert_alike(expected, hf_mhe.analyze(tmp_path))


def test_code_of_a_pipeline_is_never_run(pipeline_folder: Path, tmp_path: Path) -> None:
    """If this fails, analyzing a stranger's pipeline executes the stranger's code."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    (folder / "my_unet.py").write_text("raise SystemExit('ran')")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": ["my_unet", "MyPipeline"], "unet": ["my_unet", "MyUNet"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "unet" / "config.json").read_text())
    config |= {"_class_name": "MyUNet", "auto_map": {"AutoModel": "my_unet.MyUNet"}}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    found = hf_mhe.analyze(folder)
    kinds = {group.kind for group in found.groups if group.name.startswith("unet.")}
    assert kinds == {"unknown"}
    assert found.notes == ("unet: model class 'MyUNet' is not known to the installed diffusers",)
    assert "my_unet" not in sys.modules


def test_without_diffusers_the_package_is_named(unet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a user without diffusers gets a traceback, or layers that look known."""
    unet.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    found = hf_mhe.analyze(tmp_path)
    assert {group.kind for group in found.groups} == {"unknown"}
    assert found.notes == ("UNet2DConditionModel is of diffusers, which is not installed: pip install diffusers",)

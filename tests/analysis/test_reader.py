"""Reading checkpoints: good ones as a stream, bad ones refused in one clear line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_mhe
from hf_mhe.analysis import open_checkpoint
from hf_mhe.errors import MHEError


def refusal(given: object, **options: object) -> str:
    with pytest.raises(MHEError) as caught:
        hf_mhe.analyze(given, **options)
    told = str(caught.value)
    assert "\n" not in told
    return told


def weights(path: Path, **tensors: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or {"layer.weight": torch.randn(6, 4)}, path)
    return path


def test_headers_and_tensors_are_what_was_saved(tmp_path: Path) -> None:
    """If this fails, names, shapes, dtypes or values change between the file and the analysis."""
    saved = {
        "a.weight": torch.randn(5, 3),
        "b.weight": torch.randn(2, 3, 4).bfloat16(),
        "c.bias": torch.randn(7).half(),
    }
    save_file(saved, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as reader:
        assert reader.config is None
        assert reader.shapes() == {name: tuple(tensor.shape) for name, tensor in saved.items()}
        for name, tensor in saved.items():
            assert reader.get(name).dtype == tensor.dtype
            assert torch.equal(reader.get(name), tensor)
        with pytest.raises(MHEError, match=r"no tensor 'd\.weight'"):
            reader.get("d.weight")


@pytest.mark.slow
def test_memory_stays_at_about_one_tensor(tmp_path: Path) -> None:
    """If this fails, a checkpoint larger than the machine's memory cannot be analyzed."""
    tensor = torch.randn(1000, 4000)  # 16 MB
    for shard in range(4):
        save_file(
            {f"{shard}.{i}.weight": tensor.clone() for i in range(5)},
            tmp_path / f"model-{shard + 1:05d}-of-00004.safetensors",
        )
    script = (
        "import re, sys\n"
        "from hf_mhe.analysis import open_checkpoint\n"
        "def resident(): return int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "with open_checkpoint(sys.argv[1]) as reader:\n"
        "    reader.get('0.0.weight'); start = resident(); most = 0.0\n"
        "    for name in reader.tensors:\n"
        "        reader.get(name).sum(); most = max(most, resident() - start)\n"
        "print(most)\n"
    )
    if not os.path.exists("/proc/self/status"):
        pytest.skip("resident memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    # 320 MB went through; a handle is let go after 64 MB.
    assert float(done.stdout) < 120


def test_quantized_dtypes_are_skipped_with_the_reason(tmp_path: Path) -> None:
    """If this fails, quantization codes are taken for directions, or go unmentioned."""
    weights(
        tmp_path / "model.safetensors",
        good=torch.randn(6, 4),
        int8=torch.ones(6, 4, dtype=torch.int8),
        float8=torch.ones(6, 4).to(torch.float8_e4m3fn),
    )
    report = hf_mhe.analyze(tmp_path)
    assert [group.parameters for group in report.groups] == [("good",)]
    assert "I8" in report.skipped["int8"]
    assert "F8_E4M3" in report.skipped["float8"]


def test_one_oddly_named_file_is_the_model(tmp_path: Path) -> None:
    """If this fails, a folder whose one weight file has another name cannot be analyzed."""
    weights(tmp_path / "diffusion_pytorch_model.safetensors")
    assert len(hf_mhe.analyze(tmp_path).groups) == 1


def test_several_files_without_index(tmp_path: Path) -> None:
    """If this fails, one of several files is taken for the model by chance."""
    weights(tmp_path / "a.safetensors")
    weights(tmp_path / "b.safetensors")
    told = refusal(tmp_path)
    assert "no index" in told
    assert "a.safetensors, b.safetensors" in told


def test_full_set_of_shards_without_index(tmp_path: Path) -> None:
    """If this fails, shards whose index was lost are refused although their names tell all."""
    weights(tmp_path / "model-00001-of-00002.safetensors", first=torch.randn(4, 3))
    weights(tmp_path / "model-00002-of-00002.safetensors", second=torch.randn(4, 3))
    assert {group.name for group in hf_mhe.analyze(tmp_path).groups} == {"first", "second"}
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    weights(tmp_path / "model-00003-of-00003.safetensors")
    assert "no index" in refusal(tmp_path)
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    assert "model-00001-of-00002.safetensors is missing" in refusal(tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    """If this fails, a typing error in a path is reported as trouble with the Hub."""
    told = refusal(str(tmp_path / "nowhere"))
    assert "neither a path that exists nor a valid Hub repo id" in told
    assert "nowhere" in told
    assert "neither a path that exists" in refusal("./models/nothing.safetensors")
    assert "empty" in refusal("")


def test_a_repo_id_offline(tmp_path: Path) -> None:
    """If this fails, a user without a network is told that the repository does not exist."""
    told = refusal("owner/some-model", cache_dir=tmp_path)
    assert "not a path that exists" in told
    assert "HF_HUB_OFFLINE" in told


def test_a_folder_without_weights(tmp_path: Path) -> None:
    """If this fails, a folder with a config and no weights gives an empty report or an obscure error."""
    (tmp_path / "config.json").write_text("{}")
    told = refusal(tmp_path)
    assert "no weights" in told
    assert "model.safetensors.index.json" in told
    assert "config.json" in told


def test_a_folder_of_components(tmp_path: Path) -> None:
    """If this fails, a diffusers pipeline's folder is refused without saying where its weights are."""
    weights(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    weights(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert "unet/, vae/" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 30, 400, -1])
def test_a_truncated_file(kept: int, bert_folder: Path, tmp_path: Path) -> None:
    """If this fails, a download that broke off gives wrong numbers or an error that does not name the file."""
    whole = (bert_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:kept])
    told = refusal(tmp_path)
    assert str(tmp_path / "model.safetensors") in told
    assert "truncated" in told
    if kept == -1:
        assert f"has {len(whole) - 1} bytes" in told
        assert str(len(whole)) in told


def test_bytes_that_are_no_safetensors(tmp_path: Path) -> None:
    """If this fails, an HTML error page saved under the name of a weight file is read as weights."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    assert "not a safetensors file" in refusal(path)
    path.write_bytes((20).to_bytes(8, "little") + b"{this is not JSON..}" + b"\0" * 20)
    assert "not JSON" in refusal(path)
    whole = weights(path).read_bytes()
    path.write_bytes(whole + b"\0\0")
    assert "damaged" in refusal(path)


def test_an_index_that_names_a_missing_shard(sharded_folder: Path, tmp_path: Path) -> None:
    """If this fails, half a model is analyzed as if it were whole."""
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "copy"))
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    told = refusal(folder)
    assert lost.name in told
    assert "model.safetensors.index.json" in told


def test_an_index_whose_tensor_is_not_in_its_shard(sharded_folder: Path, tmp_path: Path) -> None:
    """If this fails, an index and its shards that do not belong together go unnoticed."""
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "copy"))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost.weight"] = sorted(content["weight_map"].values())[0]
    index.write_text(json.dumps(content))
    told = refusal(folder)
    assert "'ghost.weight'" in told
    assert content["weight_map"]["ghost.weight"] in told


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": {}}', "{", '{"weight_map": {"a": "../a.safetensors"}}']
)
def test_an_index_that_is_none(content: str, tmp_path: Path) -> None:
    """If this fails, a damaged index ends in a traceback, or makes us read files outside the checkpoint."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    assert "index" in refusal(tmp_path)


def test_a_config_that_is_none(tmp_path: Path) -> None:
    """If this fails, a damaged config.json is ignored, and the layers silently lose their names and roles."""
    weights(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": ')
    assert "config.json is not JSON" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    """If this fails, analyzing a stranger's checkpoint can run the stranger's code."""

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save(Trap(), tmp_path / name)
    for given in (tmp_path, tmp_path / name):
        told = refusal(given)
        assert name in told
        assert "runs whatever code" in told
        assert "save_pretrained" in told
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    """If this fails, any file at all is opened as weights."""
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert "not a checkpoint" in refusal(path)

"""torchao: tensor subclasses in live models, and taken apart in the checkpoints that transformers writes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hf_mhe
from hf_mhe import MHEError
from tests.neurons.quantized.cases import assert_alike, build, plain_groups, with_weights, without

torchao = pytest.importorskip("torchao")

pytestmark = pytest.mark.integrations


def _configs() -> dict[str, Any]:
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
    )
    from torchao.quantization.granularity import PerGroup

    return {
        "int8": Int8WeightOnlyConfig(version=2),
        "int8 of both": Int8DynamicActivationInt8WeightConfig(version=2),
        "int4 in bytes": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
        "float8": Float8WeightOnlyConfig(),
    }


def _quantized(name: str, config: Any, folder: Path, dtype: torch.dtype, **said: Any) -> tuple[Any, nn.Module]:
    """A model that transformers quantized while loading it; and the plain one with the weights that torchao tells."""
    from transformers import TorchAoConfig

    plain = build(name).to(dtype)
    plain.save_pretrained(folder / "plain")
    quantization = TorchAoConfig(config, **said)
    model = type(plain).from_pretrained(folder / "plain", quantization_config=quantization, dtype=dtype)
    dense = {name: p.dequantize() for name, p in model.named_parameters() if type(p) is not nn.Parameter}
    assert dense
    return model, with_weights(plain.float(), dense)


@pytest.mark.parametrize(
    ("name", "form", "dtype"),
    [
        ("llama", "int8", torch.bfloat16),
        ("phi3", "int8 of both", torch.float32),
        ("llama", "int4 in bytes", torch.float32),
        ("bert", "float8", torch.bfloat16),
        ("phi3", "float8", torch.float32),
    ],
)
def test_energies_are_those_of_the_dequantized_model(name: str, form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """If this failed, a torchao model would be left out, or measured without its scales."""
    model, oracle = _quantized(name, _configs()[form], tmp_path, dtype)
    model.save_pretrained(tmp_path / "quantized", max_shard_size="50KB")
    assert len(list((tmp_path / "quantized").glob("*.safetensors"))) > 1
    expected = hf_mhe.analyze(oracle)
    live, stored = hf_mhe.analyze(model), hf_mhe.analyze(tmp_path / "quantized")
    assert_alike(live, expected, plain_groups(name))
    assert_alike(stored, expected, plain_groups(name))
    assert live.skipped == stored.skipped == {}


def test_embeddings_too(tmp_path: Path) -> None:
    """If this failed, a table that torchao quantized would be held for a plain tensor."""
    from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis

    row = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    config = FqnToConfig({"model.embed_tokens": row, "_default": _configs()["int8"]})
    model, oracle = _quantized("llama", config, tmp_path, torch.float32, include_input_output_embeddings=True)
    roles = {group.role for group in hf_mhe.neuron_groups(model) if group.quantized}
    assert roles == {"embedding", "hidden", "output"}
    model.save_pretrained(tmp_path / "quantized")
    assert_alike(hf_mhe.analyze(model), hf_mhe.analyze(oracle), plain_groups("llama"))
    assert_alike(hf_mhe.analyze(tmp_path / "quantized"), hf_mhe.analyze(oracle), plain_groups("llama"))


def test_int8_by_the_formula() -> None:
    """If this failed, torchao's own dequantizing could be of another format than the layer computes with."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48, bias=False))
    weight = model[0].weight.detach().clone()
    quantize_(model, Int8WeightOnlyConfig(version=2))
    scales = weight.abs().amax(dim=1, keepdim=True) / 127.5
    (group,) = hf_mhe.neuron_groups(model)
    assert (group.matrix() - weight).abs().max() <= 0.51 * scales.max()
    torch.testing.assert_close(group.matrix(), model(torch.eye(64)).T, rtol=1e-5, atol=1e-6)
    assert not group.requires_grad


def test_a_scale_of_the_inputs_is_part_of_the_weight() -> None:
    """If this failed, a layer of SmoothQuant or AWQ would be measured with columns out of proportion."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48, bias=False))
    quantize_(model, Int8WeightOnlyConfig(version=2))
    (group,) = hf_mhe.neuron_groups(model)
    before = group.matrix()
    model[0].weight.act_pre_scale = torch.rand(64) + 0.5
    assert not torch.allclose(group.matrix(), before, rtol=0.1)
    torch.testing.assert_close(group.matrix(), model(torch.eye(64)).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_through_its_kernel_where_one_runs(dtype: torch.dtype) -> None:
    """If this failed, int4 that only a kernel can read would be left out, though the kernel is there."""
    opaque = pytest.importorskip("torchao.prototype.quantization.int4")
    from torchao.quantization import quantize_

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48, bias=False)).to(dtype)
    weight = model[0].weight.detach().float()
    quantize_(model, opaque.PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False))
    (group,) = hf_mhe.neuron_groups(model)
    assert (group.quantized, group.n, group.d) == ("torchao (Int4OpaqueTensor)", 48, 64)
    # Sixteen steps between the extremes of each 32 values, as in the kernel that torch calls tinygemm.
    parts = weight.unflatten(1, (-1, 32))
    low = parts.amin(dim=2, keepdim=True)
    step = (parts.amax(dim=2, keepdim=True) - low) / 15
    expected = (low + ((parts - low) / step).round().clamp(0, 15) * step).flatten(1)
    off = (group.matrix().float() - expected).abs() / step.expand_as(parts).flatten(1)
    # In half precision, a value half-way between two steps may go to either.
    assert off.max() < (1e-3 if dtype is torch.float32 else 1.1)
    assert off.median() < (1e-3 if dtype is torch.float32 else 0.05)


def _int4_layer() -> nn.Module:
    """int4 as torchao packs it on a GPU, built of its parts: on a CPU torchao itself makes none."""
    from torchao.quantization import Int4Tensor

    torch.manual_seed(0)
    codes = torch.randint(-128, 128, (48, 32), dtype=torch.int8)
    scale, zero = torch.rand(2, 48), torch.zeros(2, 48)
    weight = Int4Tensor(codes, scale.bfloat16(), zero.bfloat16(), [1, 32], torch.Size([48, 64]))
    layer = nn.Linear(64, 48, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def test_int4_is_named_where_its_kernel_does_not_run(tmp_path: Path) -> None:
    """If this failed, int4 on a CPU would stop the analysis of the layers beside it, or be left out in silence."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    model = nn.ModuleDict({"packed": _int4_layer(), "plain": nn.Linear(8, 8)})
    found = hf_mhe.coverage(model)
    assert [group.name for group in found.groups] == ["plain"]
    assert "quantized by torchao (Int4Tensor)" in found.skipped["packed.weight"]
    assert "no kernel for it on cpu" in found.skipped["packed.weight"]

    state = {name: value.detach() for name, value in model.state_dict().items()}
    tensors, metadata = flatten_tensor_state_dict(state)
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    report = hf_mhe.analyze(tmp_path)
    assert [group.name for group in report.groups] == ["plain"]
    assert {name for name in report.skipped if name.startswith("packed")} == {
        f"packed._weight_{part}" for part in ("qdata", "scale", "zero_point")
    }
    assert all("torchao (Int4Tensor)" in reason for reason in report.skipped.values())


def test_bad_parts_are_refused(tmp_path: Path) -> None:
    """If this failed, a damaged checkpoint would give the energies of other weights."""
    model, _ = _quantized("llama", _configs()["int8"], tmp_path, torch.float32)
    model.save_pretrained(tmp_path / "quantized")
    module = "model.layers.0.mlp.up_proj"

    def refused(match: str, *missing: str, **replaced: Tensor) -> None:
        target = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(MHEError, match=match):
            hf_mhe.analyze(without(tmp_path / "quantized", target, *missing, **replaced))

    refused(rf"{module}.weight' is quantized.*not hold '{module}._weight_scale'", f"{module}._weight_scale")
    refused(rf"not hold '{module}._weight_qdata'", f"{module}._weight_qdata")
    refused(
        r"up_proj._weight_scale' has shape \(95, 1\), expected 96", **{f"{module}._weight_scale": torch.ones(95, 1)}
    )
    broken = torch.full((96, 1), torch.inf)
    refused(r"up_proj._weight_scale' of shape \(96, 1\) has 96 inf", **{f"{module}._weight_scale": broken})


def test_a_list_of_names_in_each_file(tmp_path: Path) -> None:
    """If this failed, of a checkpoint in several files only the weights of the last would be known."""
    model, oracle = _quantized("llama", _configs()["int8"], tmp_path, torch.float32)
    model.save_pretrained(tmp_path / "quantized", max_shard_size="50KB")
    files = sorted((tmp_path / "quantized").glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # it is no dict
        # A weight's tensors begin with its module's name, an underscore and its own.
        here = [n for n in metadata if n in tensors or f"{n.rpartition('.')[0]}._weight_qdata" in tensors]
        kept = {**{name: metadata[name] for name in here}, "tensor_names": json.dumps(here), "format": "pt"}
        save_file(tensors, file, kept)
    assert len(files) > 1
    assert_alike(hf_mhe.analyze(tmp_path / "quantized"), hf_mhe.analyze(oracle), plain_groups("llama"))


def test_weights_that_are_renamed_while_loading(tmp_path: Path) -> None:
    """If this failed, of a model that transformers saves under older names no quantized weight would be found."""
    model, oracle = _quantized("vit", _configs()["int8"], tmp_path, torch.float32)
    model.save_pretrained(tmp_path / "quantized")
    assert not any("q_proj" in name for name in load_file(tmp_path / "quantized" / "model.safetensors"))
    assert_alike(hf_mhe.analyze(tmp_path / "quantized"), hf_mhe.analyze(oracle), plain_groups("vit"))


def test_metadata_that_does_not_say_how(tmp_path: Path) -> None:
    """If this failed, integers without a meaning would be read, or stop the reader without saying which."""
    model, _ = _quantized("llama", _configs()["int8"], tmp_path, torch.float32)
    model.save_pretrained(tmp_path / "quantized")
    file = tmp_path / "quantized" / "model.safetensors"
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # it is no dict
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        MHEError, match=r"_weight_qdata' is quantized by torchao, and the metadata .* does not say how"
    ):
        hf_mhe.analyze(tmp_path / "quantized")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors, file, {**metadata, name: json.dumps(["a list"])})
    with pytest.raises(MHEError, match=rf"metadata says .*a list.* of '{name}', not how"):
        hf_mhe.analyze(tmp_path / "quantized")
    save_file(tensors, file, {key: value for key, value in metadata.items() if key != name})
    with pytest.raises(MHEError, match=rf"metadata lists '{name}' and does not say how"):
        hf_mhe.analyze(tmp_path / "quantized")
    said = json.loads(metadata[name])
    save_file(tensors, file, {**metadata, name: json.dumps({**said, "_type": "FutureTensor"})})
    with pytest.raises(MHEError, match=rf"torchao cannot build {name}.*FutureTensor"):
        hf_mhe.analyze(tmp_path / "quantized")

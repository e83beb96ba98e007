"""Formats that are not read, and packages that are not there: every tensor is listed, with what to install."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hf_mhe
from hf_mhe import MHEError
from tests.neurons.quantized.cases import build, described, plain_groups, rewritten


def _gptq(name: str, weight: Tensor) -> dict[str, Tensor]:
    """The tensors that GPTQModel writes of a linear layer, 4 bits in groups of 32."""
    module, (rows, columns) = name.removesuffix(".weight"), weight.shape
    return {
        f"{module}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        f"{module}.qzeros": torch.zeros(columns // 32, rows // 8, dtype=torch.int32),
        f"{module}.scales": torch.ones(columns // 32, rows, dtype=torch.float16),
        f"{module}.g_idx": torch.arange(columns, dtype=torch.int32) // 32,
    }


def _awq(name: str, weight: Tensor) -> dict[str, Tensor]:
    """The tensors that AutoAWQ writes of a linear layer."""
    module, (rows, columns) = name.removesuffix(".weight"), weight.shape
    return {
        f"{module}.qweight": torch.zeros(columns, rows // 8, dtype=torch.int32),
        f"{module}.qzeros": torch.zeros(columns // 32, rows // 8, dtype=torch.int32),
        f"{module}.scales": torch.ones(columns // 32, rows, dtype=torch.float16),
    }


def _checkpoint(folder: Path, parts: Any, quantization: dict[str, Any] | None) -> Path:
    build("llama").save_pretrained(folder / "plain")

    def change(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return parts(name, tensor) if name.endswith("proj.weight") else {name: tensor}

    return rewritten(folder / "plain", folder / "quantized", change, quantization)


def _accounted(folder: Path, report: Any) -> None:
    """Every tensor of two or more dimensions is in a group or has a reason."""
    from hf_mhe.analysis.checkpoint.reader import open_checkpoint

    with open_checkpoint(folder) as reader:
        wide = {name for name, shape in reader.shapes().items() if len(shape) >= 2}
    assert wide <= {name for group in report.groups for name in group.parameters} | set(report.skipped)


@pytest.mark.parametrize(("form", "parts"), [("GPTQ", _gptq), ("AWQ", _awq)])
def test_every_weight_of_gptq_and_awq_is_listed_with_its_reason(form: str, parts: Any, tmp_path: Path) -> None:
    """If this failed, packed integers would be measured as if they were weights, or dropped in silence."""
    said = {"quant_method": form.lower(), "bits": 4, "group_size": 32}
    folder = _checkpoint(tmp_path, parts, said)
    report = hf_mhe.analyze(folder)
    assert {group.name for group in report.groups} == {"model.embed_tokens", "lm_head"}
    coded = {name: reason for name, reason in report.skipped.items() if "proj" in name}
    assert len({name for name in coded if name.endswith(".qweight")}) == 14
    assert all(f"quantized by {form}" in reason and "gptqmodel" in reason for reason in coded.values())
    (note,) = report.notes
    assert f"quantized by {form}" in note
    _accounted(folder, report)


@pytest.mark.parametrize("config", [True, False])
def test_a_format_without_a_name_is_not_guessed(config: bool, tmp_path: Path) -> None:
    """If this failed, what a config does not say would be made up from the names of tensors."""
    folder = _checkpoint(tmp_path, _gptq, {"quant_method": "tomorrow"} if config else None)
    if not config:
        (folder / "config.json").unlink()
    report = hf_mhe.analyze(folder)
    assert not [group.name for group in report.groups if "proj" in group.name]
    reason = report.skipped["model.layers.0.mlp.up_proj.qweight"]
    assert ("quantized by tomorrow" if config else "dtype I32: quantized or integer values") in reason
    assert "model.layers.0.mlp.up_proj.scales" in report.skipped
    _accounted(folder, report)


def test_positions_and_masks_are_no_quantized_weights(tmp_path: Path) -> None:
    """If this failed, a checkpoint with a table of positions would be said to be quantized."""
    tensors = {
        "a.weight": torch.randn(6, 5),
        "a.positions": torch.arange(12).view(3, 4),
        "b.mask": torch.ones(3, 3) > 0,
    }
    save_file(tensors, tmp_path / "model.safetensors")
    report = hf_mhe.analyze(tmp_path)
    assert all("positions, counts or flags" in reason for reason in report.skipped.values())
    assert set(report.skipped) == {"a.positions", "b.mask"}


def test_codes_that_a_live_layer_holds_as_buffers_are_listed() -> None:
    """If this failed, a model loaded by a package that keeps no parameters would look as if it had no such layers."""

    class QuantLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in _gptq("", torch.empty(16, 32)).items():
                self.register_buffer(name.lstrip("."), tensor)

    found = hf_mhe.coverage(nn.ModuleDict({"packed": QuantLinear(), "plain": nn.Linear(8, 8)}))
    assert [group.name for group in found.groups] == ["plain"]
    assert set(found.skipped) == {"packed.qweight"}
    assert "int32 codes of QuantLinear" in found.skipped["packed.qweight"]


def _int8(name: str, weight: Tensor) -> dict[str, Tensor]:
    scales = weight.abs().amax(dim=1)
    codes = (weight / scales[:, None] * 127).round().to(torch.int8)
    return {name: codes, f"{name.removesuffix('weight')}SCB": scales}


def test_without_its_package_a_format_is_listed_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, a machine without the package would see a traceback, or a report that says nothing of it."""
    folder = _checkpoint(tmp_path, _int8, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed: it is found nowhere
    report = hf_mhe.analyze(folder)
    assert sorted(group.name for group in report.groups) == ["lm_head", "model.embed_tokens"]
    remedy = "quantized by bitsandbytes (8-bit): reading it needs bitsandbytes, which is not installed: pip install"
    assert {name for name, reason in report.skipped.items() if remedy in reason} == {
        name for group in plain_groups("llama") if "proj" in (name := f"{group[0]}.weight")
    }
    assert remedy in report.notes[0]
    _accounted(folder, report)


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("compressed_tensors", {"quant_method": "compressed-tensors"}),
    ],
)
def test_nothing_but_a_missing_package(
    package: str, said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, a model of which nothing can be read would give an empty report, or the wrong error."""
    monkeypatch.setitem(sys.modules, package, None)
    scales = ".SCB" if package == "bitsandbytes" else ".weight_scale"
    tensors = {"a.weight": torch.ones(6, 4, dtype=torch.int8), f"a{scales}": torch.ones(6)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    name = package.replace("_", "-")
    with pytest.raises(MHEError, match=rf"a\.weight: quantized by {name}.*: pip install {name}"):
        hf_mhe.analyze(tmp_path)


def test_torchao_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, tensors that metadata describe would be read by guesswork."""
    described_by = {"_type": "Int8Tensor", "_data": {}, "_tensor_data_names": ["qdata", "scale"]}
    tensors = {"a._weight_qdata": torch.ones(6, 4, dtype=torch.int8), "a._weight_scale": torch.ones(6, 1)}
    metadata = {"a.weight": json.dumps(described_by), "tensor_names": json.dumps(["a.weight"])}
    save_file({**tensors, "b.weight": torch.randn(5, 4)}, tmp_path / "model.safetensors", metadata)
    monkeypatch.setitem(sys.modules, "torchao", None)
    report = hf_mhe.analyze(tmp_path)
    assert [group[0] for group in described(report.groups)] == ["b"]
    assert set(report.skipped) == set(tensors)
    assert all("reading it needs torchao" in reason for reason in report.skipped.values())


def test_a_package_that_is_too_old_is_named() -> None:
    """If this failed, an old package would end in an import error deep inside it."""
    from hf_mhe.neurons.quantized.stored import needs

    installed = re.escape(torch.__version__)
    assert needs("torch", at_least="2.0") is None
    assert re.fullmatch(
        rf"reading it needs torch 99.1 or newer, and {installed} is installed: pip install -U torch",
        needs("torch", at_least="99.1") or "",
    )

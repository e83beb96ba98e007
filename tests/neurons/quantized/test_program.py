"""`hf-mhe analyze` of a quantized folder: the energies of the same model dequantized and saved in float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hf_mhe
from hf_mhe.cli import main
from tests.neurons.quantized.cases import build, plain_groups, with_weights

pytestmark = pytest.mark.integrations

Saved = tuple[str, nn.Module]


def _bitsandbytes(folder: Path, **said: Any) -> Saved:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    plain = build("llama").to(torch.bfloat16)
    plain.save_pretrained(folder / "plain")
    model = type(plain).from_pretrained(folder / "plain", quantization_config=BitsAndBytesConfig(**said))
    model.save_pretrained(folder / "quantized")
    return "llama", model.dequantize(dtype=torch.float32)


def _torchao(folder: Path) -> Saved:
    pytest.importorskip("torchao")
    from torchao.quantization import Float8WeightOnlyConfig
    from transformers import TorchAoConfig

    plain = build("llama")
    plain.save_pretrained(folder / "plain")
    config = TorchAoConfig(Float8WeightOnlyConfig())
    model = type(plain).from_pretrained(folder / "plain", quantization_config=config)
    model.save_pretrained(folder / "quantized")
    dense = {name: p.dequantize() for name, p in model.named_parameters() if type(p) is not nn.Parameter}
    return "llama", with_weights(plain, dense)


def _fp8(folder: Path) -> Saved:
    from tests.neurons.quantized.test_block_fp8 import checkpoint

    return "qwen3_moe", checkpoint("qwen3_moe", folder)[1]


def _mxfp4(folder: Path) -> Saved:
    from tests.neurons.quantized.test_mxfp4 import checkpoint

    return "gpt_oss", checkpoint(folder)[1]


def _compressed(folder: Path) -> Saved:
    pytest.importorskip("compressed_tensors")
    from tests.neurons.quantized.test_compressed import SCHEMES, compressed, scheme_of

    model, compressor = compressed("llama", {"all": scheme_of(SCHEMES["pack-quantized, 4 bits"], ["Linear"])})
    model.save_pretrained(folder / "quantized")
    compressor.update_config(folder / "quantized")
    compressor.decompress_model(model)
    names = [f"{path}.weight" for path, module in model.named_modules() if hasattr(module, "quantization_scheme")]
    return "llama", with_weights(build("llama"), {name: model.get_parameter(name) for name in names})


FORMATS: dict[str, Callable[[Path], Saved]] = {
    "8-bit": lambda folder: _bitsandbytes(folder, load_in_8bit=True),
    "4-bit": lambda folder: _bitsandbytes(folder, load_in_4bit=True, bnb_4bit_use_double_quant=True),
    "torchao": _torchao,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "compressed": _compressed,
}


def _assert_same(quantized: dict[str, Any], oracle: dict[str, Any], name: str) -> None:
    assert sorted((g["name"], g["kind"], g["role"], g["n"], g["d"]) for g in quantized["groups"]) == plain_groups(name)
    expected = {group["name"]: group for group in oracle["groups"]}
    assert len(expected) == len(quantized["groups"])
    for group in quantized["groups"]:
        assert group["energy"] == pytest.approx(expected[group["name"]]["energy"], rel=1e-6), group["name"]
    assert quantized["notes"] == []


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_the_energies_are_those_of_the_dequantized_folder(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, a user would read other numbers of a quantized model than of the one that it stands for."""
    name, dense = FORMATS[form](tmp_path)
    dense.float().save_pretrained(tmp_path / "dense")
    reports = []
    for kind in ("quantized", "dense"):
        file = tmp_path / f"{kind}.json"
        monkeypatch.setattr(sys, "argv", ["hf-mhe", "analyze", str(tmp_path / kind), "--json", str(file)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        reports.append(json.loads(file.read_text()))
    _assert_same(*reports, name)


@pytest.mark.slow
def test_what_a_program_reads_is_json_alone(tmp_path: Path) -> None:
    """If this failed, what torchao and bitsandbytes say while they are imported would stand in front of the report."""
    name, dense = _torchao(tmp_path)
    command = [sys.executable, "-m", "hf_mhe.cli", "analyze", str(tmp_path / "quantized"), "--json", "-"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=True)
    _assert_same(json.loads(done.stdout), hf_mhe.analyze(dense).to_dict(), name)

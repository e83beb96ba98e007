"""Block-scaled FP8, in the layout of DeepSeek-V3's checkpoints: `weight` in float8_e4m3fn beside `weight_scale_inv`.

transformers quantizes to it on a GPU only, so the checkpoints here are written by the rule of DeepSeek-V3's report and
of its `inference/kernel.py` (weight_dequant): blocks counted from the first row and column, the last ones cut short,
`weight = value * weight_scale_inv[row // 128, column // 128]`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hf_mhe
from hf_mhe import MHEError
from tests.neurons.quantized.cases import (
    assert_alike,
    build,
    described,
    plain_groups,
    rewritten,
    with_weights,
    without,
)

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def _quantize(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Values and scales of a matrix, block by block."""
    rows, columns = (math.ceil(n / size) for n, size in zip(weight.shape, block, strict=True))
    values, scales = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            at = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight[at].abs().max() / _LARGEST
            values[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
    return values, scales


def _dequantize(values: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """The slow formula, element by element."""
    made = torch.empty(values.shape)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            made[row, column] = float(values[row, column]) * float(scales[row // block[0], column // block[1]])
    return made


def checkpoint(name: str, folder: Path, block: tuple[int, int] = (32, 32)) -> tuple[Path, nn.Module]:
    """A checkpoint whose linear layers are quantized, and the model with the weights that they stand for."""
    plain = build(name)
    plain.save_pretrained(folder / "plain")
    dense: dict[str, Tensor] = {}

    def change(name: str, tensor: Tensor) -> dict[str, Tensor]:
        if not name.endswith("proj.weight"):
            return {name: tensor}
        values, scales = _quantize(tensor, block)
        dense[name] = _dequantize(values, scales, block)
        return {name: values, f"{name}_scale_inv": scales}

    config = {"quant_method": "fp8", "weight_block_size": list(block), "activation_scheme": "dynamic"}
    quantized = rewritten(folder / "plain", folder / "quantized", change, config)
    oracle = rewritten(folder / "plain", folder / "dense", lambda name, tensor: {name: dense.get(name, tensor)}, None)
    return quantized, type(plain).from_pretrained(oracle)


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "qwen3_moe"])
def test_energies_are_those_of_the_scaled_values(name: str, tmp_path: Path) -> None:
    """If this failed, blocks cut short or experts fused while loading would be multiplied by others' scales."""
    quantized, oracle = checkpoint(name, tmp_path)
    report = hf_mhe.analyze(quantized)
    assert_alike(report, hf_mhe.analyze(oracle), plain_groups(name))
    assert report.skipped == {}
    (query,) = [group for group in report.groups if group.name.startswith("model.layers.1") and "o_proj" in group.name]
    assert query.parameters == (f"{query.name}.weight", f"{query.name}.weight_scale_inv")


def test_transformers_itself_loads_the_same_weights(tmp_path: Path) -> None:
    """If this failed, the layout would not be the one that transformers reads (it needs blocks that fill)."""
    from transformers import AutoModelForCausalLM

    quantized, _ = checkpoint("llama", tmp_path, (16, 32))
    loaded = AutoModelForCausalLM.from_pretrained(quantized)  # on a CPU transformers dequantizes
    assert not any(parameter.dtype == torch.float8_e4m3fn for parameter in loaded.parameters())
    assert_alike(hf_mhe.analyze(quantized), hf_mhe.analyze(loaded), plain_groups("llama"))


def _fp8_model(name: str, block: tuple[int, int] | None) -> tuple[Any, nn.Module]:
    """transformers' own FP8 modules in place of a model's, filled; and the plain model of the same weights."""
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    plain, model = build(name), build(name)
    config = FineGrainedFP8Config(weight_block_size=block)
    model = replace_with_fp8_linear(model, ["lm_head"], config, pre_quantized=True)  # which come on the meta device
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, attribute, nn.Parameter(torch.empty_like(parameter, device="cpu")))
    dense: dict[str, Tensor] = {}
    with torch.no_grad():
        for path, module in model.named_modules():
            for attribute, values in list(module.named_parameters(recurse=False)):
                scales = getattr(module, f"{attribute}_scale_inv", None)
                if scales is None:
                    continue
                weight = plain.get_parameter(f"{path}.{attribute}")
                stacked = weight if weight.ndim == 3 else weight[None]
                made = []
                for expert, matrix in enumerate(stacked):
                    # Gate and up are quantized apart, as two linear layers are, and then joined.
                    parts = matrix.chunk(2) if attribute == "gate_up_proj" else (matrix,)
                    sizes = [block or tuple(part.shape) for part in parts]
                    pairs = [_quantize(part, size) for part, size in zip(parts, sizes, strict=True)]
                    joined = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
                    (values[expert] if weight.ndim == 3 else values).copy_(joined[0])
                    (scales[expert] if weight.ndim == 3 else scales).copy_(joined[1].reshape(scales.shape[-2:]))
                    made.append(torch.cat([_dequantize(*pair, size) for pair, size in zip(pairs, sizes, strict=True)]))
                dense[f"{path}.{attribute}"] = torch.stack(made) if weight.ndim == 3 else made[0]
    return model, with_weights(plain, dense)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("block", [(8, 32), (40, 48), None])
def test_live_modules_of_transformers(name: str, block: tuple[int, int] | None) -> None:
    """If this failed, a model held in FP8 would be measured without its scales, or its experts not at all."""
    model, oracle = _fp8_model(name, block)
    assert {"FP8Linear"} <= {type(module).__name__ for module in model.modules()}
    report = hf_mhe.analyze(model)
    assert_alike(report, hf_mhe.analyze(oracle), plain_groups(name))
    assert all(group.quantized == "block-scaled FP8" for group in hf_mhe.neuron_groups(model, include="*.o_proj"))


def test_stacks_of_experts_are_read_as_they_are_stored(tmp_path: Path) -> None:
    """If this failed, scales of experts that a checkpoint stores as one stack would be taken for weights."""
    model, oracle = _fp8_model("qwen3_moe", (20, 32))
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [20, 32]}
    model.config.__class__.from_dict(config).save_pretrained(tmp_path)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    assert_alike(hf_mhe.analyze(tmp_path), hf_mhe.analyze(oracle), plain_groups("qwen3_moe"))


def test_without_a_config_the_values_still_count(tmp_path: Path) -> None:
    """If this failed, a lone file would be refused, or its scales listed as neurons."""
    torch.manual_seed(0)
    values, scales = _quantize(torch.randn(200, 130), (128, 128))
    save_file({"a.weight": values, "a.weight_scale_inv": scales}, tmp_path / "model.safetensors")
    report = hf_mhe.analyze(tmp_path)
    assert [(group.name, group.kind, group.n, group.d) for group in report.groups] == [("a", "unknown", 200, 130)]
    linear = nn.Linear(130, 200)
    with_weights(linear, {"weight": _dequantize(values, scales, (128, 128))})
    assert report["a"].energy == pytest.approx(hf_mhe.analyze(linear).groups[0].energy, rel=1e-6)


def test_scales_as_powers_of_two(tmp_path: Path) -> None:
    """If this failed, exponents stored as bytes would be multiplied with as if they were the scales."""
    torch.manual_seed(0)
    values = torch.randn(40, 64).to(torch.float8_e4m3fn)
    exponents = torch.randint(120, 130, (2, 2), dtype=torch.uint8)
    save_file({"a.weight": values, "a.weight_scale_inv": exponents}, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}}
    (tmp_path / "config.json").write_text(str(config).replace("'", '"'))
    linear = with_weights(
        nn.Linear(64, 40), {"weight": _dequantize(values, 2.0 ** (exponents.float() - 127), (32, 32))}
    )
    assert hf_mhe.analyze(tmp_path)["a"].energy == pytest.approx(hf_mhe.analyze(linear).groups[0].energy, rel=1e-6)


def test_bad_scales_are_refused(tmp_path: Path) -> None:
    """If this failed, a damaged checkpoint would give the energies of other weights."""
    quantized, _ = checkpoint("llama", tmp_path)
    scales = "model.layers.0.mlp.up_proj.weight_scale_inv"
    with pytest.raises(MHEError, match=rf"up_proj\.weight' is quantized by block-scaled FP8.*not hold '{scales}'"):
        hf_mhe.analyze(without(quantized, tmp_path / "missing", scales))
    wrong = without(quantized, tmp_path / "wrong", **{scales: torch.ones(3, 3)})
    with pytest.raises(MHEError, match=r"up_proj.weight_scale_inv' has shape \(3, 3\), expected \(3, 2\).*\(96, 64\)"):
        hf_mhe.analyze(wrong)
    broken = without(quantized, tmp_path / "nan", **{scales: torch.full((3, 2), torch.nan)})
    with pytest.raises(MHEError, match=rf"{scales}' of shape \(3, 2\) has 6 NaN"):
        hf_mhe.analyze(broken)


def test_heads_and_patterns(tmp_path: Path) -> None:
    """If this failed, a quantized checkpoint would know fewer groups than a plain one."""
    quantized, oracle = checkpoint("llama", tmp_path)
    report = hf_mhe.analyze(quantized, by_head=True, include="*q_proj*")
    assert described(report.groups) == described(hf_mhe.neuron_groups(oracle, by_head=True, include="*q_proj*"))
    assert len(report.groups) == 2 * 4

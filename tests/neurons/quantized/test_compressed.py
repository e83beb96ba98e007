"""compressed-tensors: the formats that llm-compressor writes, against its own decompressing and that of transformers.

llm-compressor is not needed: scales are those of the smallest and largest value of each row, group or block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_mhe
from hf_mhe import MHEError
from tests.neurons.quantized.cases import assert_alike, build, plain_groups, rewritten, with_weights, without

pytest.importorskip("compressed_tensors")

pytestmark = pytest.mark.integrations

_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
_FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
_DYNAMIC = {"num_bits": 8, "strategy": "token", "dynamic": True}

SCHEMES: dict[str, dict[str, Any]] = {
    "pack-quantized, 4 bits": {"weights": _INT4},
    "pack-quantized, 4 bits, zero points": {"weights": {**_INT4, "symmetric": False}},
    "pack-quantized, 3 bits": {"weights": {**_INT4, "num_bits": 3}},
    "pack-quantized, 8 bits": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}},
    "int-quantized": {
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
        "input_activations": {"type": "int", **_DYNAMIC},
    },
    "float-quantized": {"weights": _FP8, "input_activations": {"type": "float", **_DYNAMIC}},
    "float-quantized, one scale": {
        "weights": {**_FP8, "strategy": "tensor"},
        "input_activations": {"type": "float", **_DYNAMIC},
    },
    "float-quantized, blocks": {
        "weights": {**_FP8, "strategy": "block", "block_structure": [32, 32]},
        "input_activations": {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 32, "dynamic": True},
    },
    "nvfp4-pack-quantized": {
        "weights": {
            "num_bits": 4,
            "type": "float",
            "strategy": "tensor_group",
            "group_size": 16,
            "scale_dtype": torch.float8_e4m3fn,
        }
    },
    "mxfp4-pack-quantized": {
        "weights": {
            "num_bits": 4,
            "type": "float",
            "strategy": "group",
            "group_size": 32,
            "scale_dtype": torch.uint8,
            "zp_dtype": torch.uint8,
        }
    },
}


def scheme_of(said: dict[str, Any], targets: list[str]) -> Any:
    from compressed_tensors.quantization import QuantizationScheme

    return QuantizationScheme(targets=targets, **said)


def _fill(module: Any) -> None:
    """The scales of one layer, from the extremes of each of its blocks."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args, weight = module.quantization_scheme.weights, module.weight.detach()
    rows, columns = weight.shape
    height, width = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, args.group_size),
        "tensor_group": (1, args.group_size),
        "block": args.block_structure,
    }[args.strategy]
    blocks = [
        [weight[i : i + height, j : j + width] for j in range(0, columns, width)] for i in range(0, rows, height)
    ]
    low, high = (torch.tensor([[float(at(b)) for b in row] for row in blocks]) for at in (Tensor.min, Tensor.max))
    whole = generate_gparam(weight.min(), weight.max()) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    for name, value in (("scale", scale), ("zero_point", zero), ("global_scale", whole)):
        held = getattr(module, f"weight_{name}", None)
        if held is not None:
            held.data.copy_(value.reshape(held.shape))


def compressed(name: str, groups: dict[str, Any], ignore: tuple[str, ...] = ("lm_head",)) -> tuple[Any, Any]:
    """A model in the state in which it is saved, and what saves it."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = build(name)
    config = QuantizationConfig(config_groups=groups, ignore=list(ignore), quantization_status="frozen")
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            _fill(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    return model, compressor


def _check(name: str, groups: dict[str, Any], folder: Path) -> set[str | None]:
    """Live, stored, decompressed by the library and loaded by transformers, all are alike; the formats found."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model, compressor = compressed(name, groups)
    live, forms = hf_mhe.analyze(model), {group.quantized for group in hf_mhe.neuron_groups(model)}
    model.save_pretrained(folder, max_shard_size="50KB")
    compressor.update_config(folder)
    stored = hf_mhe.analyze(folder)
    loaded = []
    if len(groups) == 1:  # transformers 5.24 dequantizes while loading by one scheme alone
        config = CompressedTensorsConfig(dequantize=True)
        loaded.append(AutoModelForCausalLM.from_pretrained(folder, quantization_config=config))
    compressor.decompress_model(model)
    dense = {f"{path}.weight": m.weight for path, m in model.named_modules() if hasattr(m, "quantization_scheme")}
    oracle = hf_mhe.analyze(with_weights(build(name), dense))
    for report in (live, stored, *map(hf_mhe.analyze, loaded)):
        assert_alike(report, oracle, plain_groups(name))
    assert live.skipped == stored.skipped == {}
    return forms


@pytest.mark.parametrize("scheme", SCHEMES)
def test_energies_are_those_of_the_decompressed_model(scheme: str, tmp_path: Path) -> None:
    """If this failed, packed words or float8 values would be measured without their scales."""
    forms = _check("llama", {"all": scheme_of(SCHEMES[scheme], ["Linear"])}, tmp_path)
    assert forms == {None, f"compressed-tensors ({scheme.partition(',')[0]})"}


def test_groups_of_layers_with_a_format_each(tmp_path: Path) -> None:
    """If this failed, a mixed checkpoint would be read with the scheme of another layer."""
    groups = {
        "table": scheme_of(SCHEMES["pack-quantized, 8 bits"], ["Embedding"]),
        "rest": scheme_of(SCHEMES["float-quantized"], ["Linear"]),
        "down": scheme_of(SCHEMES["pack-quantized, 4 bits"], ["re:.*down_proj"]),
    }
    forms = _check("llama", groups, tmp_path)
    assert forms == {None, *(f"compressed-tensors ({form})" for form in ("pack-quantized", "float-quantized"))}


def test_int4_by_the_formula() -> None:
    """If this failed, the library's decompressing and ours could both be of another format."""
    model, _ = compressed("llama", {"all": scheme_of(SCHEMES["pack-quantized, 4 bits"], ["Linear"])})
    name = "model.layers.0.mlp.up_proj"
    weight = build("llama").get_parameter(f"{name}.weight").detach()
    expected = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], 32):
            part = weight[row, start : start + 32]
            scale = part.abs().max() / 7.5
            expected[row, start : start + 32] = (part / scale).round().clamp(-8, 7) * scale
    (group,) = hf_mhe.neuron_groups(model, include=name)
    torch.testing.assert_close(group.matrix(), expected, rtol=1e-5, atol=1e-6)
    assert not group.requires_grad


def test_experts_that_are_stored_one_by_one(tmp_path: Path) -> None:
    """If this failed, the experts of a mixture, which transformers stacks while loading, would be left out."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    plain = build("qwen3_moe")
    plain.save_pretrained(tmp_path / "plain")
    scheme = scheme_of(SCHEMES["pack-quantized, 8 bits"], ["Linear"])
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    dense: dict[str, Tensor] = {}

    def change(name: str, tensor: Tensor) -> dict[str, Tensor]:
        if ".experts." not in name:
            return {name: tensor}
        scale = tensor.abs().amax(dim=1, keepdim=True) / 127.5
        state = compressor.compress({"weight": tensor, "weight_scale": scale}, scheme)
        dense[name] = (tensor / scale).round().clamp(-128, 127) * scale
        return {name.removesuffix("weight") + part: value for part, value in state.items()}

    config = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], quantization_status="compressed", format="pack-quantized"
    )
    quantized = rewritten(tmp_path / "plain", tmp_path / "quantized", change, config.model_dump(mode="json"))
    folder = rewritten(tmp_path / "plain", tmp_path / "dense", lambda name, t: {name: dense.get(name, t)}, None)
    report = hf_mhe.analyze(quantized)
    assert_alike(report, hf_mhe.analyze(type(plain).from_pretrained(folder)), plain_groups("qwen3_moe"))
    assert report["model.layers.0.mlp.experts.1.up"].n == 40


def test_after_a_forward_pass_the_layers_are_plain() -> None:
    """If this failed, a model that decompresses when first used would be taken for quantized ever after."""
    model, _ = compressed("llama", {"all": scheme_of(SCHEMES["int-quantized"], ["Linear"])})
    before = hf_mhe.analyze(model)
    groups = hf_mhe.neuron_groups(model)
    with torch.no_grad():
        model(torch.arange(5)[None])
    assert {group.quantized for group in hf_mhe.neuron_groups(model)} == {None}
    assert_alike(hf_mhe.analyze(model), before, plain_groups("llama"))
    with pytest.raises(MHEError, match=r"has decompressed it since.*make the groups again"):
        next(group for group in groups if group.quantized).matrix()


def test_bad_scales_are_refused(tmp_path: Path) -> None:
    """If this failed, a damaged checkpoint would give the energies of other weights."""
    model, compressor = compressed("llama", {"all": scheme_of(SCHEMES["pack-quantized, 4 bits"], ["Linear"])})
    model.save_pretrained(tmp_path / "quantized")
    compressor.update_config(tmp_path / "quantized")
    name = "model.layers.0.mlp.up_proj.weight"

    def refused(match: str, *missing: str, **replaced: Tensor) -> None:
        target = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(MHEError, match=match):
            hf_mhe.analyze(without(tmp_path / "quantized", target, *missing, **replaced))

    refused(rf"'{name}_packed' is quantized by compressed-tensors.*not hold '{name}_scale'", f"{name}_scale")
    refused(rf"'{name}_packed' of shape \(96, 8\).*{name}_shape.* not in the checkpoint", f"{name}_shape")
    refused(rf"{name}_scale' has shape \(96, 3\), expected \(96, 2\)", **{f"{name}_scale": torch.ones(96, 3)})
    words = torch.zeros(96, 7, dtype=torch.int32)
    refused(rf"{name}_packed' has shape \(96, 7\), expected \(96, 8\)", **{f"{name}_packed": words})
    broken = torch.full((96, 2), torch.nan)
    refused(rf"{name}_scale' of shape \(96, 2\) has 192 NaN", **{f"{name}_scale": broken})


def test_columns_in_another_order_are_named(tmp_path: Path) -> None:
    """If this failed, a weight quantized by activation order would be read with its columns' scales mixed up."""
    model, compressor = compressed("llama", {"all": scheme_of(SCHEMES["pack-quantized, 4 bits"], ["Linear"])})
    model.save_pretrained(tmp_path / "quantized")
    compressor.update_config(tmp_path / "quantized")
    name = "model.layers.0.mlp.up_proj.weight"
    order = {f"{name}_g_idx": torch.arange(64, dtype=torch.int32) // 32}
    report = hf_mhe.analyze(without(tmp_path / "quantized", tmp_path / "ordered", **order))
    assert "weight_g_idx" in report.skipped[f"{name}_packed"]
    assert "weight_g_idx" in report.notes[0]


def test_a_config_that_the_library_does_not_accept(tmp_path: Path) -> None:
    """If this failed, a bad config would end in a traceback of pydantic."""
    said = {
        "quant_method": "compressed-tensors",
        "config_groups": {"all": {"targets": ["Linear"], "weights": {"num_bits": "many"}}},
    }
    build("llama").save_pretrained(tmp_path / "plain")
    folder = rewritten(tmp_path / "plain", tmp_path / "bad", lambda name, tensor: {name: tensor}, said)
    with pytest.raises(MHEError, match=r"config.json: compressed-tensors does not accept.*num_bits"):
        hf_mhe.analyze(folder)

"""bitsandbytes 8-bit and 4-bit, on a CPU: live layers and saved checkpoints against what the library dequantizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hf_mhe
from hf_mhe import MHEError
from tests.neurons.quantized.cases import assert_alike, build, plain_groups, with_weights, without

bnb = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.integrations

_INT8: dict[str, Any] = {"load_in_8bit": True}
_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_NF4_TWICE = {**_NF4, "bnb_4bit_use_double_quant": True}
_NF4_AS_BFLOAT16 = {**_NF4, "bnb_4bit_quant_storage": "bfloat16"}  # so that FSDP can shard the bytes
_FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}

# QLoRA (arXiv:2305.14314), appendix E.
_NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def _quantized(name: str, said: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A model that transformers quantized while loading it."""
    from transformers import BitsAndBytesConfig

    plain = build(name).to(dtype)
    plain.save_pretrained(folder / "plain")
    return type(plain).from_pretrained(folder / "plain", quantization_config=BitsAndBytesConfig(**said), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "said", "dtype"),
    [
        ("llama", _INT8, torch.float32),
        ("gpt2", _INT8, torch.bfloat16),
        ("phi3", _FP4, torch.float32),
        ("llama", _NF4_AS_BFLOAT16, torch.float32),
        ("gpt2", _NF4_TWICE, torch.float32),
        ("bert", _NF4_TWICE, torch.bfloat16),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_energies_are_those_of_the_dequantized_model(
    name: str, said: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    """If this failed, bytes would be taken for weights, or a fused or transposed layer cut along the wrong axis."""
    model = _quantized(name, said, tmp_path, dtype)
    model.save_pretrained(tmp_path / "quantized", max_shard_size="50KB")
    assert len(list((tmp_path / "quantized").glob("*.safetensors"))) > 1
    live, stored = hf_mhe.analyze(model), hf_mhe.analyze(tmp_path / "quantized")
    form = "bitsandbytes (8-bit)" if said is _INT8 else "bitsandbytes (4-bit)"
    assert form in {group.quantized for group in hf_mhe.neuron_groups(model)}
    oracle = hf_mhe.analyze(model.dequantize(dtype=torch.float32))
    assert_alike(live, oracle, plain_groups(name))
    assert_alike(stored, oracle, plain_groups(name))
    assert live.skipped == stored.skipped == {}


def test_a_group_names_all_tensors_that_its_weight_is_made_of(tmp_path: Path) -> None:
    """If this failed, coverage would lose the scales of a checkpoint."""
    _quantized("llama", _NF4_TWICE, tmp_path).save_pretrained(tmp_path / "quantized")
    group = hf_mhe.analyze(tmp_path / "quantized", include="model.layers.0.self_attn.q_proj").groups[0]
    parts = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4")
    assert set(group.parameters) == {f"model.layers.0.self_attn.q_proj.weight{part}" for part in parts}


def _nf4_layer(twice: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = bnb.nn.LinearNF4(128, 96, bias=False, compress_statistics=twice)
    weight = torch.randn(96, 128)
    layer.load_state_dict({"weight": weight})
    return nn.Sequential(layer.to("cpu")).eval(), weight


def _nf4_by_hand(layer: Any) -> Tensor:
    """The slow formula: the nearest of sixteen values, times the largest magnitude in its block of 64."""
    state = layer.weight.quant_state
    scales = state.absmax
    if state.nested:
        block = state.state2.blocksize
        scales = torch.tensor(
            [
                float(state.state2.code[int(code)] * state.state2.absmax[i // block] + state.offset)
                for i, code in enumerate(state.absmax)
            ]
        )
    codes = [nibble for byte in layer.weight.data.flatten().tolist() for nibble in (byte >> 4, byte & 15)]
    made = [_NF4_VALUES[code] * float(scales[i // state.blocksize]) for i, code in enumerate(codes)]
    return torch.tensor(made).view(state.shape)


@pytest.mark.parametrize("twice", [False, True])
def test_nf4_is_the_published_formula(twice: bool) -> None:
    """If this failed, both the library's own dequantizing and ours could be of another format."""
    model, weight = _nf4_layer(twice)
    (group,) = hf_mhe.neuron_groups(model)
    expected = _nf4_by_hand(model[0])
    assert (expected - weight).abs().max() < 0.16 * weight.abs().max()  # half the widest gap between two values
    torch.testing.assert_close(group.matrix(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("twice", [False, True])
def test_a_forward_pass_packs_the_bytes_anew(twice: bool) -> None:
    """If this failed, a model that has been used on a CPU would be measured by bytes in another order."""
    model, _ = _nf4_layer(twice)
    (group,) = hf_mhe.neuron_groups(model)
    before, codes = group.matrix(), model[0].weight.data.clone()
    with torch.no_grad():
        outputs = model(torch.eye(128))
    state = model[0].weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        # Only a forward pass on a processor with AVX512-BF16 does it by itself.
        model[0].weight.data, state = bnb.functional._convert_weight_packed_for_cpu(model[0].weight.data, state)
        model[0].weight.quant_state = state
        outputs = None
    assert not torch.equal(model[0].weight.data.flatten(), codes.flatten())
    # The scales are bfloat16 from now on, and so are the weights in the kernel.
    (again,) = hf_mhe.neuron_groups(model)
    for after in (group.matrix(), again.matrix()):
        torch.testing.assert_close(after, before, rtol=2**-8, atol=0)
        if outputs is not None:
            torch.testing.assert_close(after, outputs.T, rtol=2**-7, atol=1e-6)
    assert model[0].weight.quant_state is state  # looking has changed nothing
    assert state.packing_format_for_cpu
    assert state.dtype == torch.bfloat16


def test_8_bit_scales_that_a_forward_pass_has_moved() -> None:
    """If this failed, an 8-bit model could be measured until its first use only."""
    torch.manual_seed(0)
    layer = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": torch.randn(32, 64)})
    model = nn.Sequential(layer.to("cpu")).eval()
    (group,) = hf_mhe.neuron_groups(model)
    before = group.matrix()
    rows = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    torch.testing.assert_close(before, rows)
    model(torch.randn(3, 64))
    assert model[0].weight.SCB is None
    assert torch.equal(group.matrix(), before)
    assert torch.equal(hf_mhe.neuron_groups(model)[0].matrix(), before)


@pytest.mark.parametrize("name", ["EmbeddingNF4", "Embedding8bit"])
def test_embeddings(name: str) -> None:
    """If this failed, quantized tables would be left out."""
    torch.manual_seed(0)
    table = getattr(bnb.nn, name)(50, 64)
    weight = torch.randn(50, 64)
    table.load_state_dict({"weight": weight})
    model = nn.Sequential(table.to("cpu"))
    (group,) = hf_mhe.neuron_groups(model)
    assert (group.kind, group.role, group.n, group.d) == ("embedding", "embedding", 50, 64)
    with torch.no_grad():
        torch.testing.assert_close(group.matrix(), model(torch.arange(50)), rtol=1e-3, atol=1e-3)


def test_stacks_of_experts() -> None:
    """If this failed, experts that bitsandbytes holds under a parametrization would not be told from bytes."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    model = build("qwen3_moe")
    dense: dict[str, Tensor] = {}
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "Qwen3MoeExperts":
            for attribute in ("gate_up_proj", "down_proj"):
                replace_parameter_4bit(module, attribute, quant_type="nf4", compress_statistics=True)
                dense[f"{path}.{attribute}"] = getattr(module, attribute).detach()
    oracle = hf_mhe.analyze(with_weights(build("qwen3_moe"), dense))
    assert_alike(hf_mhe.analyze(model), oracle, plain_groups("qwen3_moe"))
    assert not any(group.requires_grad for group in hf_mhe.neuron_groups(model, include="*experts*"))


def _bytes(content: object) -> Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def _state(folder: Path, name: str) -> Tensor:
    return load_file(folder / "model.safetensors")[name]


def test_bad_scales_are_refused(tmp_path: Path) -> None:
    """If this failed, a damaged checkpoint would give the energies of other weights."""
    _quantized("llama", _INT8, tmp_path).save_pretrained(tmp_path / "int8")
    _quantized("llama", _NF4, tmp_path).save_pretrained(tmp_path / "nf4")
    _quantized("llama", _NF4_TWICE, tmp_path).save_pretrained(tmp_path / "twice")
    name = "model.layers.0.mlp.up_proj"
    weight, state = f"{name}.weight", f"{name}.weight.quant_state.bitsandbytes__nf4"

    def refused(folder: str, match: str, *missing: str, **replaced: Tensor) -> None:
        target = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(MHEError, match=match):
            hf_mhe.analyze(without(tmp_path / folder, target, *missing, **replaced))

    refused("int8", rf"'{weight}' is quantized by .*8-bit.*not hold '{name}.SCB'", f"{name}.SCB")
    refused("int8", rf"'{name}.SCB' .*not hold '{weight}'", weight)
    refused("int8", rf"{name}.SCB' has shape \(95,\), expected 96 values", **{f"{name}.SCB": torch.ones(95)})
    refused("int8", rf"{name}.SCB' of shape \(96,\) has 96 NaN", **{f"{name}.SCB": torch.full((96,), torch.nan)})
    refused("nf4", rf"'{weight}' is quantized by .*4-bit.*not hold '{state}'", state)
    refused("nf4", rf"not hold '{weight}.absmax'", f"{weight}.absmax")
    refused("nf4", rf"{weight}.absmax' has shape \(7,\), expected 96", **{f"{weight}.absmax": torch.ones(7)})
    refused("nf4", rf"{weight}.quant_map' has shape \(8,\), expected 16", **{f"{weight}.quant_map": torch.ones(8)})
    refused("nf4", rf"{weight}' has shape \(9, 1\), expected 3072", **{weight: torch.ones(9, 1, dtype=torch.uint8)})
    refused("nf4", rf"{state}' should spell JSON", **{state: torch.ones(9, dtype=torch.uint8)})
    refused("nf4", rf"{state} describes no 4-bit weight", **{state: _bytes({"blocksize": 64})})
    refused("twice", rf"{weight}.nested_absmax' has shape \(3,\), exp", **{f"{weight}.nested_absmax": torch.ones(3)})
    refused("twice", rf"not hold '{weight}.nested_quant_map'", f"{weight}.nested_quant_map")
    other = {**json.loads(bytes(_state(tmp_path / "nf4", state).tolist())), "quant_type": "nf5"}
    refused("nf4", rf"no bitsandbytes \(4-bit\) weight can be made of {weight} \+ ", **{state: _bytes(other)})

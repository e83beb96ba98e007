"""MXFP4, in the layout of GPT-OSS: stacks of experts as `<name>_blocks` and `<name>_scales`, both bytes.

The oracle is the definition in the OCP Microscaling Formats (MX) Specification v1.0: an element is E2M1 (one bit of
sign, two of exponent with bias 1, one of mantissa), the scale of each 32 of them E8M0 (an exponent with bias 127; 255
is NaN). Of two elements in a byte, the low four bits are the first.
"""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_mhe
from hf_mhe import MHEError
from hf_mhe.analysis.checkpoint.reader import CheckpointReader, open_checkpoint
from hf_mhe.neurons import WeightCache, checkpoint_groups
from tests.neurons.quantized.cases import assert_alike, build, plain_groups, rewritten, with_weights, without

_EXPERTS = "model.layers.1.mlp.experts"
_UNUSED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def _element(code: int) -> float:
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    magnitude = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -magnitude if sign else magnitude


def _dequantize(blocks: Tensor, scales: Tensor) -> Tensor:
    """The weight (experts, in, out) of blocks (experts, out, in / 32, 16) and scales (experts, out, in / 32)."""
    experts, rows, groups, _ = blocks.shape
    stored, exponents = blocks.tolist(), scales.tolist()
    made = torch.empty(experts, groups * 32, rows)
    for expert in range(experts):
        for row in range(rows):
            line: list[float] = []
            for group in range(groups):
                scale = 2.0 ** (exponents[expert][row][group] - 127)
                for byte in stored[expert][row][group]:
                    line += [_element(byte & 15) * scale, _element(byte >> 4) * scale]
            made[expert, :, row] = torch.tensor(line)
    return made


def checkpoint(folder: Path, quantization: dict[str, Any] | None = _UNUSED) -> tuple[Path, nn.Module]:
    """A GPT-OSS checkpoint with experts of random bytes, and the plain model of the same weights."""
    plain = build("gpt_oss")
    plain.save_pretrained(folder / "plain")
    generator = torch.Generator().manual_seed(0)
    dense: dict[str, Tensor] = {}

    def change(name: str, tensor: Tensor) -> dict[str, Tensor]:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return {name: tensor}
        experts, inputs, outputs = tensor.shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(115, 125, (experts, outputs, inputs // 32), generator=generator, dtype=torch.uint8)
        dense[name] = _dequantize(blocks, scales)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    quantized = rewritten(folder / "plain", folder / "quantized", change, quantization)
    return quantized, with_weights(plain, dense)


def test_energies_are_those_of_the_definition(tmp_path: Path) -> None:
    """If this failed, halves of bytes would be swapped, a transposed stack cut along the inputs, or experts mixed."""
    quantized, oracle = checkpoint(tmp_path)
    report = hf_mhe.analyze(quantized)
    assert_alike(report, hf_mhe.analyze(oracle), plain_groups("gpt_oss"))
    up = report[f"{_EXPERTS}.2.up"]
    assert up.parameters == (f"{_EXPERTS}.gate_up_proj_blocks", f"{_EXPERTS}.gate_up_proj_scales")
    assert all("bias" in name for name in report.skipped)


def test_transformers_itself_loads_the_same_weights(tmp_path: Path) -> None:
    """If this failed, the layout would not be the one that transformers reads."""
    from transformers import AutoModelForCausalLM

    quantized, _ = checkpoint(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(quantized)  # on a CPU transformers dequantizes
    assert loaded.get_parameter(f"{_EXPERTS}.down_proj").is_floating_point()
    assert_alike(hf_mhe.analyze(quantized), hf_mhe.analyze(loaded), plain_groups("gpt_oss"))


def test_each_tensor_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a stack would be read and dequantized anew for each of its experts: hours for a large model."""
    quantized, _ = checkpoint(tmp_path)
    reads: Counter[str] = Counter()
    get = CheckpointReader.get_unchecked

    def counted(self: CheckpointReader, name: str) -> Tensor:
        reads[name] += 1
        return get(self, name)

    monkeypatch.setattr(CheckpointReader, "get_unchecked", counted)
    hf_mhe.analyze(quantized)
    assert set(reads.values()) == {1}
    assert reads[f"{_EXPERTS}.gate_up_proj_blocks"] == 1


def _stacks_in_memory() -> int:
    gc.collect()
    shapes = (tuple(each.shape) for each in gc.get_objects() if type(each) is Tensor)
    return sum(shape in ((3, 64, 128), (3, 64, 64)) for shape in shapes)


@pytest.mark.slow
def test_one_stack_at_a_time(tmp_path: Path) -> None:
    """If this failed, the dequantized stacks of a large model would pile up in memory."""
    quantized, _ = checkpoint(tmp_path)
    with open_checkpoint(quantized) as reader:
        found = checkpoint_groups(reader.shapes(), reader.config, dtypes=reader.dtypes(), get=reader.get)
        gc.collect()
        gc.freeze()  # what there is by now is not looked at
        try:
            cache = WeightCache(reader.get)
            for group in found.groups:
                rows = group.build(cache)
                assert rows.shape == (group.n, group.d)
                assert _stacks_in_memory() <= 1, group.name
        finally:
            gc.unfreeze()


def test_without_a_config_the_values_still_count(tmp_path: Path) -> None:
    """If this failed, a lone file of experts would be refused, or its scales listed as neurons."""
    quantized, oracle = checkpoint(tmp_path)
    (quantized / "config.json").unlink()
    report = hf_mhe.analyze(quantized, include="*down_proj*")
    stack = oracle.get_parameter(f"{_EXPERTS}.down_proj").detach().flatten(1)
    linear = with_weights(nn.Linear(stack.shape[1], 3), {"weight": stack})
    row = report[f"{_EXPERTS}.down_proj"]
    assert (row.kind, row.n, row.d) == ("unknown", *stack.shape)
    assert row.energy == pytest.approx(hf_mhe.analyze(linear).groups[0].energy, rel=1e-6)


def test_bad_scales_are_refused(tmp_path: Path) -> None:
    """If this failed, a damaged checkpoint would give the energies of other weights."""
    quantized, _ = checkpoint(tmp_path)
    blocks, scales = f"{_EXPERTS}.down_proj_blocks", f"{_EXPERTS}.down_proj_scales"

    def refused(match: str, *missing: str, **replaced: Tensor) -> None:
        target = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(MHEError, match=match):
            hf_mhe.analyze(without(quantized, target, *missing, **replaced))

    refused(rf"'{blocks}' is quantized by MXFP4.*not hold '{scales}'", scales)
    refused(rf"'{scales}' is quantized by MXFP4.*not hold '{blocks}'", blocks)
    few = torch.zeros(3, 64, 1, dtype=torch.uint8)
    refused(rf"{scales}' has shape \(3, 64, 1\), expected \(3, 64, 2\)", **{scales: few})
    broken = torch.full((3, 64, 2), 127, dtype=torch.uint8)
    broken[1, 5, 0] = 255
    refused(rf"{scales}' .* 1 .*NaN.* \[1, 5, 0\]", **{scales: broken})


@pytest.mark.parametrize("loaded", [False, True])
def test_experts_held_for_a_kernel_are_named(loaded: bool) -> None:
    """If this failed, bytes in an order that only a kernel knows would be read, or left out in silence."""
    from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

    experts = Mxfp4GptOssExperts(build("gpt_oss", "meta").config)
    if loaded:  # on a GPU transformers puts a kernel's own tensors in the place of the parameters
        for name in ("gate_up_proj", "down_proj"):
            del experts._parameters[name]
            setattr(experts, name, object())
    found = hf_mhe.coverage(nn.ModuleDict({"experts": experts, "plain": nn.Linear(8, 8)}))
    assert [group.name for group in found.groups] == ["plain"]
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        assert "quantized by MXFP4" in found.skipped[name]
        assert "analyze the checkpoint" in found.skipped[name]

"""Components of a pipeline whose tensors have the same names, as two text encoders of one class have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_mhe
from hf_mhe import MHEError
from tests.oracle import slow_energy


def _pipeline(folder: Path, **components: dict[str, torch.Tensor]) -> Path:
    for name, tensors in components.items():
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "diffusion_pytorch_model.safetensors")
    index = {name: ["diffusers", "UNet2DModel"] for name in components}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_each_component_is_read_by_its_own_reader(tmp_path: Path) -> None:
    """If this failed, the second of two components would be measured by the weights of the first."""
    first, second = (torch.randn(6, 4) for _ in range(2))
    folder = _pipeline(tmp_path, one={"layer.weight": first}, two={"layer.weight": second})
    report = hf_mhe.analyze(folder)
    groups = [report["one.layer"], report["two.layer"]]
    assert [group.parameters for group in groups] == [("one.layer.weight",), ("two.layer.weight",)]
    for group, weight in zip(groups, (first, second), strict=True):
        assert group.energy == pytest.approx(float(slow_energy(weight)), rel=1e-5)


def test_a_nan_is_named_with_the_component_that_has_it(tmp_path: Path) -> None:
    """If this failed, the wrong file of two would be blamed, or the NaN measured."""
    broken = torch.randn(6, 4)
    broken[2, 1] = float("nan")
    folder = _pipeline(tmp_path, one={"layer.weight": torch.randn(6, 4)}, two={"layer.weight": broken})
    with pytest.raises(MHEError, match=r"two.*'layer\.weight'.*1 NaN.*\[2, 1\]"):
        hf_mhe.analyze(folder)

"""Folders that timm saves, read as the models that save them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_mhe
from tests.alike import assert_alike

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.integrations

# architecture -> further arguments of create_model, and its classifier
ARCHITECTURES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "resnet18": ({"num_classes": 7}, {"fc"}),
    "convnext_atto": ({"num_classes": 5, "depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, {"head.fc"}),
    "mobilenetv3_small_050": ({"num_classes": 5}, {"classifier"}),
    "resnext50_32x4d": ({"num_classes": 0, "layers": (1, 1, 1, 1)}, set()),
    "vit_tiny_patch16_224": ({"num_classes": 5, "img_size": 32, "depth": 2}, {"head"}),
    "swin_tiny_patch4_window7_224": (
        {"num_classes": 3, "img_size": 56, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16},
        {"head.fc"},
    ),
    "beit_base_patch16_224": ({"num_classes": 4, "img_size": 32, "depth": 1, "embed_dim": 48}, {"head"}),
}


def _saved(name: str, folder: Path) -> Any:
    from timm.models import save_for_hf

    arguments, _ = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    # A tuple comes back from JSON as a list, as it does on the Hub.
    rest = {key: value for key, value in arguments.items() if key != "num_classes"}
    save_for_hf(model, folder, model_args=rest, safe_serialization=True)
    return model


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_model_on_disk_is_the_model_in_memory(name: str, tmp_path: Path) -> None:
    """If this fails, a model of timm is read by shape, or built with other layers than it was saved with."""
    model = _saved(name, tmp_path)
    found = hf_mhe.analyze(tmp_path, by_head=True)
    assert_alike(hf_mhe.analyze(model, by_head=True), found)
    assert {group.name for group in found.groups if group.role == "output"} == ARCHITECTURES[name][1]
    assert "unknown" not in {group.kind for group in found.groups}


def test_an_architecture_that_timm_lacks_is_read_by_shape(tmp_path: Path) -> None:
    """If this fails, a checkpoint of another release of timm is refused, or presented as if its layers were known."""
    model = _saved("resnet18", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "resnet_of_2030"}))
    found = hf_mhe.analyze(tmp_path)
    assert {(group.kind, group.role) for group in found.groups} == {("unknown", "hidden")}
    assert found.notes == ("architecture 'resnet_of_2030' is not known to the installed timm",)
    assert found["fc"].energy == pytest.approx(hf_mhe.analyze(model, include="fc")["fc"].energy, rel=1e-6)


def test_arguments_that_load_something_are_not_followed(tmp_path: Path) -> None:
    """If this fails, a stranger's config makes timm read a file of its choice."""
    _saved("resnet18", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    evil = {"checkpoint_path": str(tmp_path / "evil.pth"), "pretrained": True, "cache_dir": str(tmp_path)}
    (tmp_path / "evil.pth").write_text("no weights at all")
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": evil}))
    assert hf_mhe.analyze(tmp_path).notes == ()


def test_without_timm_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a user without timm gets a traceback, or layers that look known."""
    _saved("resnet18", tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    found = hf_mhe.analyze(tmp_path)
    assert {group.kind for group in found.groups} == {"unknown"}
    assert found.notes == ("architecture 'resnet18' is of timm, which is not installed: pip install timm",)

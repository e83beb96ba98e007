"""The halves of a fused gated layer: the gate is the half that goes through the activation, whatever it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from hf_mhe.neurons import neuron_groups
from tests.neurons.families.table import FAMILIES
from tests.neurons.families.watch import without_bias, zeroed


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if family.gated))
def test_the_gate_is_what_is_activated(name: str) -> None:
    """If this failed, gate and up would be named the wrong way round."""
    family = FAMILIES[name]
    assert family.gated is not None
    fused, activation, down = family.gated
    model = without_bias(family.build())
    groups = {group.name: group for group in neuron_groups(model)}
    layer = next(name for name in groups if name.endswith(f"{fused}.gate")).removesuffix(f".{fused}.gate")
    seen: dict[str, torch.Tensor] = {}
    for watched in (activation, down):
        model.get_submodule(f"{layer}.{watched}").register_forward_pre_hook(
            lambda _, inputs, watched=watched: seen.update({watched: inputs[0].clone()})
        )
    model(**family.inputs)
    whole = dict(seen)
    with zeroed(groups[f"{layer}.{fused}.gate"]):
        model(**family.inputs)
    assert not seen[activation].any()
    with zeroed(groups[f"{layer}.{fused}.up"]):
        model(**family.inputs)
    assert torch.equal(seen[activation], whole[activation])
    assert whole[down].any()
    assert not seen[down].any()


_SIZES = {"hidden_size": 32, "intermediate_size": 48}
# model folder, class of the layer, class and arguments of its config, further arguments of the layer
GATED: list[tuple[str, str, str, dict[str, Any], tuple[Any, ...]]] = [
    ("glm", "GlmMLP", "GlmConfig", _SIZES, ()),
    ("dia", "DiaMLP", "DiaEncoderConfig", _SIZES, ()),
    ("modernbert", "ModernBertMLP", "ModernBertConfig", _SIZES, ()),
    ("moonshine", "MoonshineDecoderMLP", "MoonshineConfig", _SIZES, ("silu",)),
    ("phi4_multimodal", "Phi4MultimodalAudioMLP", "Phi4MultimodalAudioConfig", _SIZES, ()),
    (
        "granitemoeshared",
        "GraniteMoeSharedMLP",
        "GraniteMoeSharedConfig",
        {"hidden_size": 32, "shared_intermediate_size": 48},
        (),
    ),
    ("moshi", "MoshiGatingMLP", "MoshiConfig", {"hidden_size": 32, "ffn_dim": 96}, ()),
    ("clvp", "ClvpGatedLinearUnit", "ClvpEncoderConfig", _SIZES, ()),
]


@pytest.mark.parametrize("folder", [case[0] for case in GATED])
def test_a_gated_layer_is_linear_in_up_and_not_in_gate(folder: str) -> None:
    """If this failed, gate and up would be named the wrong way round: only the gate goes through the activation."""
    _, cls, config_class, arguments, more = next(case for case in GATED if case[0] == folder)
    modeling = import_module(f"transformers.models.{folder}.modeling_{folder}")
    configuration = import_module(f"transformers.models.{folder}.configuration_{folder}")
    torch.manual_seed(0)
    layer = getattr(modeling, cls)(getattr(configuration, config_class)(**arguments), *more).eval()
    for name, parameter in layer.named_parameters():
        torch.nn.init.zeros_(parameter) if name.endswith("bias") else torch.nn.init.normal_(parameter, std=0.3)
    groups = {group.name.rpartition(".")[2]: group for group in neuron_groups(layer)}
    hidden = torch.randn(1, 3, 32)
    with torch.no_grad():
        once = layer(hidden)
        groups["up"].matrix().mul_(2)  # halves below each other: a view of the stored weight
        assert torch.allclose(layer(hidden), 2 * once, rtol=1e-4, atol=1e-5)
        groups["up"].matrix().mul_(0.5)
        groups["gate"].matrix().mul_(2)
        assert not torch.allclose(layer(hidden), 2 * once, rtol=1e-2, atol=1e-2)

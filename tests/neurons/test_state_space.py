"""The parts of a mixer's fused projections are those that its forward pass takes them for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_mhe.neurons import neuron_groups

_MAMBA = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 20}
# name -> (path of the mixer in the base model, config class, its arguments, the parts of in_proj in order)
MIXERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "mamba": ("layers.0.mixer", "MambaConfig", {**_MAMBA, "state_size": 4, "time_step_rank": 3}, "x z"),
    "falcon_mamba": ("layers.0.mixer", "FalconMambaConfig", {**_MAMBA, "state_size": 4, "time_step_rank": 3}, "x z"),
    "mamba2": (
        "layers.0.mixer",
        "Mamba2Config",
        {**_MAMBA, "state_size": 4, "num_heads": 4, "head_dim": 8, "expand": 2, "n_groups": 2, "chunk_size": 4},
        "z x B C dt",
    ),
    "bamba": (
        "layers.0.mamba",
        "BambaConfig",
        {**_MAMBA, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 4,
         "mamba_chunk_size": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 8},
        "z x B C dt",
    ),
}  # fmt: skip


def mixer_of(name: str) -> nn.Module:
    import transformers

    path, config, arguments, _ = MIXERS[name]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**arguments))
    mixer = model.get_submodule(path)
    nn.init.normal_(mixer.conv1d.weight)
    nn.init.constant_(mixer.conv1d.bias, 0.5)
    return mixer.eval()


def output_without(mixer: nn.Module, part: str | None) -> torch.Tensor:
    """What a mixer gives for fixed inputs with the neurons of one part at zero."""
    inputs = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    kept = {name: p.detach().clone() for name, p in mixer.named_parameters()}
    try:
        if part is not None:
            (group,) = neuron_groups(mixer, include=part)
            with torch.no_grad():
                group.matrix().zero_()  # a view of the parameter
        with torch.no_grad():
            return mixer(inputs)
    finally:
        mixer.load_state_dict(kept, strict=False)


@pytest.mark.parametrize("name", MIXERS)
def test_parts_of_the_input_projection(name: str) -> None:
    """If this failed, the gate of a state space would be compared with its input."""
    mixer, parts = mixer_of(name), MIXERS[name][3].split()
    groups = neuron_groups(mixer, include="in_proj*")
    assert [group.name for group in groups] == [f"in_proj.{part}" for part in parts]
    whole = output_without(mixer, None)
    # silu(0) is 0: without its gate a mixer gives nothing. Without x there is still the convolution's bias.
    assert output_without(mixer, "in_proj.z").abs().max() < 1e-6 < whole.abs().max()
    assert output_without(mixer, "in_proj.x").abs().max() > 1e-6


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba"])
def test_parts_of_the_time_step_projection(name: str) -> None:
    """If this failed, time steps would be compared with the state space's input and output matrices."""
    mixer = mixer_of(name)
    whole = output_without(mixer, None)
    no_input, no_output, no_step = (output_without(mixer, f"x_proj.{part}") for part in ("B", "C", "dt"))
    # Nothing in, or nothing out: both leave the skip connection D alone.
    assert torch.allclose(no_input, no_output, atol=1e-6)
    assert not torch.allclose(no_input, whole, atol=1e-6)
    assert not torch.allclose(no_step, whole, atol=1e-6)
    assert not torch.allclose(no_step, no_input, atol=1e-6)


def test_parts_of_a_short_convolution() -> None:
    """If this failed, LFM's gates would be compared with what they gate."""
    from transformers import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    torch.manual_seed(0)
    layer = Lfm2ShortConv(Lfm2Config(hidden_size=8, conv_bias=False, conv_L_cache=3), layer_idx=0).eval()
    inputs = torch.randn(2, 6, 8)
    with torch.no_grad():
        B, C, x = (
            inputs @ group.matrix().T for group in neuron_groups(layer, include=[f"in_proj.{part}" for part in "BCx"])
        )
        expected = layer.out_proj(C * layer.conv((B * x).transpose(1, 2))[..., :6].transpose(1, 2))
        assert torch.allclose(layer(inputs), expected, atol=1e-6)


def test_zamba_takes_its_channels_in_turn() -> None:
    """If this failed, Zamba's projection would be cut into halves, as Mamba's is."""
    import transformers

    config = transformers.ZambaConfig(
        **_MAMBA, layers_block_type=["mamba"], n_mamba_heads=2, mamba_d_state=4, num_attention_heads=2
    )  # fmt: skip
    torch.manual_seed(0)
    mixer = transformers.AutoModel.from_config(config).layers[0].mamba.eval()
    without_gate = output_without(mixer, "in_proj.z")
    assert without_gate.abs().max() < 1e-6 < output_without(mixer, None).abs().max()

"""timm's fused projections are taken apart as its attention cuts them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_mhe.neurons import neuron_groups

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.integrations

# name -> where one attention is, and arguments that make the model small
MODELS = {
    "vit_tiny_patch16_224": ("blocks.0.attn", {"img_size": 32, "embed_dim": 12, "num_heads": 3, "depth": 1}),
    "swin_tiny_patch4_window7_224": (
        "layers.0.blocks.0.attn",
        {"img_size": 28, "window_size": 7, "embed_dim": 12, "num_heads": (3,), "depths": (1,)},
    ),
    "beit_base_patch16_224": ("blocks.0.attn", {"img_size": 32, "embed_dim": 12, "num_heads": 3, "depth": 1}),
    "eva02_tiny_patch14_224": ("blocks.0.attn", {"img_size": 28, "embed_dim": 12, "num_heads": 3, "depth": 1}),
    "xcit_nano_12_p16_224": ("blocks.0.attn", {"img_size": 32, "embed_dim": 12, "num_heads": 3, "depth": 1}),
}


def values_in(model: nn.Module, path: str) -> torch.Tensor:
    """What reaches the attention's output projection, (..., heads * head)."""
    seen = []
    hook = model.get_submodule(f"{path}.proj").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.randn(1, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(0)))
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", MODELS)
def test_heads_of_timm(name: str) -> None:
    """If this failed, timm's queries, keys and values would be compared with each other, or other heads' rows."""
    path, arguments = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5, **arguments).eval()
    names = [group.name for group in neuron_groups(model, include=f"{path}.qkv*")]
    assert names == [f"{path}.qkv.{part}" for part in "qkv"]
    attention = model.get_submodule(path)
    for bias in ("q_bias", "k_bias", "v_bias"):
        if getattr(attention, bias, None) is not None:
            nn.init.zeros_(getattr(attention, bias))
    if attention.qkv.bias is not None:
        nn.init.zeros_(attention.qkv.bias)
    (head,) = neuron_groups(model, include=f"{path}.qkv.v.head.1", by_head=True)
    before = values_in(model, path)
    with torch.no_grad():
        head.matrix().zero_()  # a view of the parameter
    after = values_in(model, path)
    assert head.n == 4
    assert after[..., 4:8].abs().max() == 0 < before[..., 4:8].abs().max()
    assert torch.allclose(after[..., :4], before[..., :4], atol=1e-6)
    assert torch.allclose(after[..., 8:], before[..., 8:], atol=1e-6)

"""diffusers' attention: its heads, and its projections after `fuse_projections()`."""

from __future__ import annotations

import pytest
import torch

from hf_mhe.neurons import neuron_groups

attention_processor = pytest.importorskip("diffusers.models.attention_processor")

pytestmark = pytest.mark.integrations


def test_heads_of_diffusers() -> None:
    """If this failed, `by_head` would leave the attention of every UNet whole."""
    torch.manual_seed(0)
    attention = attention_processor.Attention(query_dim=8, cross_attention_dim=6, heads=3, dim_head=4)
    groups = {group.name: group for group in neuron_groups(attention, by_head=True)}
    assert [name for name in groups if name.startswith("to_v")] == [f"to_v.head.{head}" for head in range(3)]
    seen = []
    attention.to_out[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, other = torch.randn(2, 5, 8), torch.randn(2, 7, 6)
    with torch.no_grad():
        attention(x, encoder_hidden_states=other)
        groups["to_v.head.1"].matrix().zero_()  # a view of the parameter
        attention(x, encoder_hidden_states=other)
    before, after = seen
    assert after[..., 4:8].abs().max() == 0 < before[..., 4:8].abs().max()
    assert torch.equal(after[..., :4], before[..., :4])
    assert torch.equal(after[..., 8:], before[..., 8:])


def test_fused_projections_of_diffusers() -> None:
    """If this failed, fusing a pipeline's projections would compare its queries with its values."""
    attention = attention_processor.Attention(query_dim=8, heads=2, dim_head=4)
    apart = {group.name: group.matrix() for group in neuron_groups(attention)}
    attention.fuse_projections()
    fused = {group.name: group.matrix() for group in neuron_groups(attention, include="to_qkv*")}
    assert [*fused] == ["to_qkv.q", "to_qkv.k", "to_qkv.v"]
    for part in "qkv":
        assert torch.equal(fused[f"to_qkv.{part}"], apart[f"to_{part}"])
    crossed = attention_processor.Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4)
    crossed.fuse_projections()
    assert [group.name for group in neuron_groups(crossed, include="to_kv*")] == ["to_kv.k", "to_kv.v"]

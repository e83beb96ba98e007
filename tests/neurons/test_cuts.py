"""A layer is taken apart as the code around it cuts its output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_mhe.neurons import coverage, neuron_groups

HEADS, HEAD, WIDTH = 2, 3, 6


class Net(nn.Module):
    """Gives its queries, keys and values, each flat in the order of the stored rows."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.fused = layer if layer is not None else nn.Linear(WIDTH, 3 * WIDTH)
        self.num_heads, self.head_dim, self.embed_dim = HEADS, HEAD, WIDTH


class Thirds(Net):
    """timm's."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        B, N, C = x.shape
        qkv = self.fused(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return tuple(part.transpose(1, 2).flatten(2) for part in (q, k, v))


class ThirdsUnpacked(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        B, N, _ = x.shape
        query, key, value = self.fused(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 1, 3, 4)
        return query.flatten(2), key.flatten(2), value.flatten(2)


class Split(Net):
    """As in nanoGPT."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = self.fused(x).split(self.embed_dim, dim=2)
        return q, k, v


class Chunks(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mixed = self.fused(x)
        mixed = mixed.float() + 1.0
        query_states, key_states, value_states = torch.chunk(mixed, 3, dim=-1)
        return query_states - 1, key_states - 1, value_states - 1


class ByHead(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mixed = self.fused(x).view(*x.shape[:2], self.num_heads, 3 * self.head_dim)
        q, k, v = mixed.chunk(3, dim=-1)
        return q.flatten(2), k.flatten(2), v.flatten(2)


class ByHeadSplit(Net):
    """tiny_vit's."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        B, N, _ = x.shape
        size = self.head_dim
        q, k, v = self.fused(x).view(B, N, self.num_heads, -1).split([size, size, size], dim=3)
        return q.flatten(2), k.flatten(2), v.flatten(2)


class Functional(Net):
    """BEiT's, which adds a bias of its own."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.fused.bias is None:  # noqa: SIM108
            qkv = self.fused(x)
        else:
            qkv = F.linear(x, weight=self.fused.weight, bias=self.fused.bias)
        q, k, v = qkv.chunk(3, -1)
        return q, k, v


NETS = [Thirds, ThirdsUnpacked, Split, Chunks, ByHead, ByHeadSplit, Functional]


@pytest.mark.parametrize("net", NETS)
def test_parts_are_what_the_code_cuts(net: type[Net]) -> None:
    """If this failed, queries would be compared with values, or with rows of other heads."""
    model = net()
    groups = neuron_groups(model)
    assert [group.name for group in groups] == ["fused.q", "fused.k", "fused.v"]
    x = torch.randn(2, 4, WIDTH)
    bias = model.fused.bias
    nn.init.zeros_(bias)
    for group, part in zip(groups, model(x), strict=True):
        assert torch.allclose(x @ group.matrix().T, part, atol=1e-5)


@pytest.mark.parametrize("net", [Thirds, ByHead, ByHeadSplit])
def test_heads_of_parts(net: type[Net]) -> None:
    """If this failed, `by_head` would cut across heads where the code tells them."""
    model = net()
    nn.init.zeros_(model.fused.bias)
    x = torch.randn(2, 4, WIDTH)
    groups = neuron_groups(model, by_head=True)
    assert [group.name for group in groups] == [f"fused.{part}.head.{head}" for part in "qkv" for head in range(HEADS)]
    outputs = [head for part in model(x) for head in part.split(HEAD, dim=2)]
    for group, output in zip(groups, outputs, strict=True):
        assert torch.allclose(x @ group.matrix().T, output, atol=1e-5)


class GatedConvolution(Net):
    def __init__(self) -> None:
        super().__init__(nn.Conv1d(4, 10, 1))
        self.glu = nn.GLU(dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fused(x)
        return self.glu(hidden)


def test_gates_of_a_convolution() -> None:
    """If this failed, the gates of a conformer would be compared with what they gate."""
    model = GatedConvolution()
    up, gate = neuron_groups(model)
    assert (up.name, gate.name, up.kind) == ("fused.up", "fused.gate", "conv1d")
    with torch.no_grad():
        gate.matrix().zero_()  # a view of the parameter
        model.fused.bias.zero_()
        x = torch.randn(2, 4, 7)
        expected = torch.einsum("nd,bdt->bnt", up.matrix(), x) / 2
    assert torch.allclose(model(x), expected, atol=1e-6)


class Geglu(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, other = self.fused(x).chunk(2, dim=-1)
        return hidden * F.gelu(other)


class Swiglu(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, gate = self.fused(x).chunk(2, dim=-1)
        return F.silu(hidden) * gate


@pytest.mark.parametrize(("net", "names"), [(Geglu, ["up", "gate"]), (Swiglu, ["gate", "up"])])
def test_the_gate_is_what_is_activated(net: type[Net], names: list[str]) -> None:
    """If this failed, gates would be called by two names, or up-projections gates."""
    assert [group.name for group in neuron_groups(net())] == [f"fused.{name}" for name in names]


class OverTokens(Net):
    """Cuts the sequence, not the channels."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b, c = self.fused(x).chunk(3, dim=1)
        return a, b, c


class Unknown(Net):
    def forward(self, x: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, ...]:
        q, k, v = self.fused(x).split(sizes, dim=-1)
        return q, k, v


class TwoWays(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if x.shape[1] > 3:
            q, k, v = self.fused(x).chunk(3, dim=-1)
        else:
            q, k, v = self.fused(x).view(*x.shape[:2], self.num_heads, 3, self.head_dim).unbind(-2)
        return q, k, v


class WrongSizes(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = self.fused(x).split(self.embed_dim + 1, dim=-1)
        return q, k, v


class Reassigned(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mixed = self.fused(x)
        mixed = mixed.flip(-1)
        q, k, v = mixed.chunk(3, dim=-1)
        return q, k, v


class Rotated(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q = self.fused(x)
        q_rot, q_pass = q.chunk(2, dim=-1)
        return q_rot, q_pass


class Logits(Net):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        start, end = self.fused(x).split(1, dim=-1)
        return start, end


@pytest.mark.parametrize("net", [OverTokens, Unknown, TwoWays, WrongSizes, Reassigned, Rotated, Logits])
def test_what_is_not_told_stays_whole(net: type[Net]) -> None:
    """If this failed, a layer would be cut where nothing vouches for it, or into parts of one neuron."""
    found = coverage(net())
    assert [group.name for group in found.groups] == ["fused"]
    assert found.skipped == {}

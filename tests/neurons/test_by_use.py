"""A bare matrix is read as the module's own code multiplies with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_mhe.neurons import coverage, neuron_groups


class Net(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(*shape))


class Linear(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w.to(x.dtype))


class LinearByKeyword(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input=x, weight=self.w)


class TimesTransposed(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w.T


class FromTheLeft(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w @ x.transpose(-2, -1)).transpose(-2, -1)


class Times(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


class Matmul(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.w.float()
        return torch.matmul(x, weight)


class MethodOfTheInput(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mm(self.w)


class Einsum(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi, io -> bo", x, self.w)


class Inherited(Times):
    pass


class Cosines(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(x), F.normalize(self.w))


class CosinesWithColumns(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.normalize(self.w, dim=0)
        return torch.mm(F.normalize(x, dim=1), weight)


ROWS = [Linear, LinearByKeyword, TimesTransposed, FromTheLeft]
COLUMNS = [Times, Matmul, MethodOfTheInput, Einsum, Inherited]


@pytest.mark.parametrize("net", ROWS + COLUMNS)
def test_outputs_are_products_with_the_neurons(net: type[Net]) -> None:
    """If this failed, a square bare matrix would be measured along its inputs instead of its neurons."""
    model = net(4, 4)
    (group,) = neuron_groups(model)
    assert (group.name, group.kind, group.role) == ("w", "linear", "hidden")
    x = torch.randn(3, 4)
    assert torch.allclose(model(x), x @ group.matrix().T, atol=1e-6)


@pytest.mark.parametrize("net", [Cosines, CosinesWithColumns])
def test_outputs_are_cosines_with_the_neurons(net: type[Net]) -> None:
    """If this failed, the class vectors of margin losses (AM-softmax, ArcFace) would be skipped."""
    model = net(4, 4)
    (group,) = neuron_groups(model)
    x = torch.randn(3, 4)
    assert torch.allclose(model(x), F.normalize(x) @ F.normalize(group.matrix()).T, atol=1e-6)


class Lookup(Net):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.w)


def test_rows_that_are_looked_up_are_an_embedding() -> None:
    """If this failed, a table that is no nn.Embedding would be regularized as a hidden layer."""
    (group,) = neuron_groups(Lookup(5, 4))
    assert (group.kind, group.role, group.n, group.d) == ("embedding", "embedding", 5, 4)


class Heads(Net):
    """As XLNet stores queries: (model, heads, head)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ibh,hnd->ibnd", x, self.w)


class OutOfHeads(Net):
    """As XLNet stores the way back: (model, heads, head) again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ibnd,hnd->ibh", x, self.w)


def test_an_einsum_says_which_axes_are_summed_over() -> None:
    """If this failed, three-dimensional projections would be skipped, or be cut along the wrong axes."""
    into, out = Heads(6, 2, 5), OutOfHeads(6, 2, 5)
    (queries,), (back,) = neuron_groups(into), neuron_groups(out)
    x, y = torch.randn(3, 1, 6), torch.randn(3, 1, 2, 5)
    assert torch.allclose(into(x).flatten(2), x @ queries.matrix().T, atol=1e-5)
    assert torch.allclose(out(y), y.flatten(2) @ back.matrix().T, atol=1e-5)


class Batched(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x, self.w)


class OneByOne(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.linear(x[i], self.w[i].T) for i in range(len(self.w))])


class AddedTo(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(torch.zeros(()), x, self.w)


@pytest.mark.parametrize("net", [Batched, OneByOne, AddedTo])
def test_a_stack_is_a_group_for_each_matrix(net: type[Net]) -> None:
    """If this failed, block-diagonal layers would be no neurons, or neurons of different inputs be compared."""
    model = net(3, 4, 5)
    groups = neuron_groups(model)
    assert [(group.name, group.n, group.d) for group in groups] == [(f"w.{i}", 5, 4) for i in range(3)]
    x = torch.randn(3, 2, 4)
    for output, part, group in zip(model(x), x, groups, strict=True):
        assert torch.allclose(output, part @ group.matrix().T, atol=1e-5)


class MyExperts(nn.Module):
    """A mixture of experts that no library knows."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(3, 8, 4))
        self.down_proj = nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        up = self.up_proj[expert]
        return torch.relu(F.linear(x, up)) @ self.down_proj[expert]


def test_experts_that_no_library_knows() -> None:
    """If this failed, a new mixture of experts would have no groups until its class is registered."""
    groups = neuron_groups(nn.ModuleDict({"mlp": MyExperts()}))
    assert {group.kind for group in groups} == {"expert"}
    assert [(group.name, group.n, group.d) for group in groups] == [
        *((f"mlp.{i}.up_proj", 8, 4) for i in range(3)),
        *((f"mlp.{i}.down_proj", 4, 8) for i in range(3)),
    ]


class MyRouter(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w)


def test_routers_are_named_as_such() -> None:
    """If this failed, the scores of experts would pass for a hidden layer of any kind."""
    (group,) = neuron_groups(MyRouter(5, 4))
    assert (group.kind, group.role) == ("router", "hidden")


class List(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ParameterList([torch.randn(4, 5), torch.randn(5, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.maps:
            x = x @ weight
        return x


def test_entries_of_a_list_are_whole_matrices() -> None:
    """If this failed, a chain of bare matrices would be skipped."""
    groups = neuron_groups(List())
    assert [(group.name, group.kind, group.n, group.d) for group in groups] == [
        ("maps.0", "linear", 5, 4),
        ("maps.1", "linear", 3, 5),
    ]


class BothWays(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w) @ self.w.T


class OneVector(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w[0]


class MadeFromItself(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.w
        weight = weight.flip(0).T
        return x @ weight


class HandedIn(Net):
    def forward(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        if weight is None:
            weight = self.w
        return x @ weight


class CosinesAcross(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ F.normalize(self.w, dim=1)


class Elementwise(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w


def without_source() -> type[Net]:
    scope: dict[str, type[Net]] = {"Net": Net}
    exec("class Made(Net):\n    def forward(self, x):\n        return x @ self.w", scope)
    return scope["Made"]


@pytest.mark.parametrize("net", [lambda: BothWays, lambda: OneVector, lambda: MadeFromItself, lambda: HandedIn,
                                 lambda: CosinesAcross,
                                 lambda: Elementwise, without_source])  # fmt: skip
def test_what_is_not_told_is_not_guessed(net: Callable[[], type[Net]]) -> None:
    """If this failed, a matrix would be measured along an axis that nothing vouches for."""
    found = coverage(net()(4, 4))
    assert found.groups == []
    assert list(found.skipped) == ["w"]
    assert found.skipped["w"].endswith("shows its neurons")


def test_an_overridden_method_does_not_count() -> None:
    """If this failed, a subclass would be read as its parent multiplies."""

    class Turned(Times):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.w)

    model = Turned(4, 4)
    (group,) = neuron_groups(model)
    assert torch.equal(group.matrix(), model.w)

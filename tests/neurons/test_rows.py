"""A row of `matrix()` is a neuron: the forward pass decides, not the storage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from hf_mhe.neurons import coverage, neuron_groups


def _conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(7, 5)


# layer, an input for it, the axis of its output that counts the neurons, and the number of groups it has
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5), 1, 1),
    "transformers_conv1d": (_conv1d, (3, 5), 1, 1),
    "conv1d": (lambda: nn.Conv1d(3, 6, 4), (2, 3, 9), 1, 1),
    "conv2d": (lambda: nn.Conv2d(3, 6, (2, 3)), (2, 3, 7, 7), 1, 1),
    "conv3d": (lambda: nn.Conv3d(3, 6, 2), (2, 3, 4, 4, 4), 1, 1),
    "conv2d grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3), (2, 6, 7, 7), 1, 3),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), (2, 6, 7, 7), 1, 1),
    "depthwise, one output per group": (lambda: nn.Conv1d(6, 3, 3, groups=3), (2, 6, 7), 1, 1),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(3, 6, 4), (2, 3, 9), 1, 1),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(3, 6, (2, 3)), (2, 3, 7, 7), 1, 1),
    "conv_transpose2d grouped": (lambda: nn.ConvTranspose2d(6, 9, 3, groups=3), (2, 6, 7, 7), 1, 3),
    "conv_transpose depthwise": (lambda: nn.ConvTranspose2d(6, 12, 3, groups=6), (2, 6, 7, 7), 1, 1),
    "conv_transpose one output per group": (lambda: nn.ConvTranspose1d(6, 3, 3, groups=3), (2, 6, 7), 1, 1),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv1d(3, 6, 4)), (2, 3, 9), 1, 1),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_output_channel_depends_on_its_row_alone(name: str) -> None:
    """If this failed, energies would be taken between vectors that are no neurons of the layer.

    The derivative of output channel c by the matrix is zero in every row but the c-th of all groups in order, and not
    zero there: row c, and nothing else, is what the channel is computed from.
    """
    make, shape, axis, count = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    groups = neuron_groups(layer)
    assert len(groups) == count
    outputs = layer(torch.randn(shape, dtype=torch.float64)).movedim(axis, 0)
    assert sum(group.n for group in groups) == len(outputs)
    channel = 0
    for group in groups:
        # a parametrized weight is read by its direction part, whose rows are those of the weight
        stored = group.tensors()[-1]
        for row in range(group.n):
            (grad,) = torch.autograd.grad(outputs[channel].sum(), stored, retain_graph=True)
            touched = group.layout(grad).abs().sum(1)
            assert touched[row] > 0
            assert touched.sum() == touched[row]
            others = [other.layout(grad).abs().sum() for other in groups if other is not group]
            assert sum(others) == 0
            channel += 1


@pytest.mark.parametrize("name", ["linear", "transformers_conv1d", "conv2d", "conv_transpose2d", "conv2d grouped"])
def test_zeroed_row_silences_its_channel(name: str) -> None:
    """If this failed, row i of `matrix()` would not hold the weights of output channel i."""
    make, shape, axis, _ = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    layer.bias.data.zero_()
    x = torch.randn(shape)
    group = neuron_groups(layer)[0]
    before = layer(x).movedim(axis, 0)
    (row,) = torch.autograd.grad(group.matrix()[2].sum(), layer.weight)  # one where the weight belongs to row 2
    with torch.no_grad():
        layer.weight.masked_fill_(row.bool(), 0)
    after = layer(x).movedim(axis, 0)
    assert (after[2] == 0).all()
    rest = [channel for channel in range(len(before)) if channel != 2]
    torch.testing.assert_close(after[rest], before[rest])


def test_rows_of_a_bilinear_form() -> None:
    """If this failed, the neurons of nn.Bilinear would mix outputs."""
    torch.manual_seed(0)
    layer = nn.Bilinear(3, 4, 5, bias=False)
    x, y = torch.randn(3), torch.randn(4)
    (group,) = neuron_groups(layer)
    torch.testing.assert_close(group.matrix() @ torch.outer(x, y).flatten(), layer(x, y))


def test_rows_of_an_embedding_are_its_entries() -> None:
    """If this failed, token vectors would not be the neurons of an embedding."""
    for layer in (nn.Embedding(6, 4), nn.EmbeddingBag(6, 4)):
        (group,) = neuron_groups(layer)
        assert (group.role, group.kind, group.n, group.d) == ("embedding", "embedding", 6, 4)
        assert torch.equal(group.matrix(), layer.weight)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
def test_multihead_attention_is_taken_apart(sizes: dict[str, int]) -> None:
    """If this failed, queries, keys and values would be compared with each other as if they were one layer."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, bias=False, **sizes)
    groups = {group.name.rpartition(".")[2]: group for group in neuron_groups(layer, include="*in_proj*")}
    assert list(groups) == ["q", "k", "v"]
    query, key, value = torch.randn(1, 5, 8), torch.randn(1, 5, layer.kdim), torch.randn(1, 5, layer.vdim)
    q, k, v = (
        (x @ groups[name].matrix().T).unflatten(-1, (2, 4)).transpose(1, 2)
        for name, x in (("q", query), ("k", key), ("v", value))
    )
    attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attended @ layer.out_proj.weight.T, layer(query, key, value)[0])


@pytest.mark.parametrize(
    ("cell", "gates"),
    [
        (nn.LSTMCell(4, 5), ["input", "forget", "cell", "output"]),
        (nn.GRUCell(4, 5), ["reset", "update", "new"]),
    ],
)
def test_gates_are_those_of_the_cell(cell: nn.RNNCellBase, gates: list[str]) -> None:
    """If this failed, a group called "forget" would hold the weights of another gate."""
    x, h, c = torch.randn(2, 4), torch.randn(2, 5), torch.randn(2, 5)
    for parameter in (cell.bias_ih, cell.bias_hh):
        nn.init.zeros_(parameter)
    groups = {group.name.removeprefix(type(cell).__name__ + "."): group.matrix() for group in neuron_groups(cell)}
    assert list(groups) == [f"{weight}.{gate}" for weight in ("weight_ih", "weight_hh") for gate in gates]
    w_x = {gate: x @ groups[f"weight_ih.{gate}"].T for gate in gates}
    w_h = {gate: h @ groups[f"weight_hh.{gate}"].T for gate in gates}
    if isinstance(cell, nn.LSTMCell):
        total = {gate: w_x[gate] + w_h[gate] for gate in gates}
        state = total["forget"].sigmoid() * c + total["input"].sigmoid() * total["cell"].tanh()
        torch.testing.assert_close(total["output"].sigmoid() * state.tanh(), cell(x, (h, c))[0])
    else:
        reset, update = ((w_x[gate] + w_h[gate]).sigmoid() for gate in ("reset", "update"))
        new = (w_x["new"] + reset * w_h["new"]).tanh()
        torch.testing.assert_close((1 - update) * new + update * h, cell(x, h))


def test_recurrent_layers_of_every_shape_are_covered() -> None:
    """If this failed, a stacked, bidirectional or projected LSTM would lose weights."""
    found = coverage(nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3))
    assert found.skipped == {}
    assert len(found.groups) == 4 * (4 + 4 + 1)
    assert {(g.n, g.d) for g in found.groups if "weight_hr" in g.name} == {(3, 5)}


def test_gradient_reaches_the_parameter() -> None:
    """If this failed, a penalty on `matrix()` would train nothing."""
    torch.manual_seed(0)
    for make, _, _, _ in LAYERS.values():
        layer = make()
        for group in neuron_groups(layer):
            group.matrix().square().sum().backward()
            trained = [tensor for tensor in group.tensors() if tensor.grad is not None and tensor.grad.abs().sum() > 0]
            assert trained, group


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: parametrizations.weight_norm(nn.Linear(5, 4)),
        lambda: parametrizations.spectral_norm(nn.Linear(5, 4)),
        lambda: parametrizations.orthogonal(nn.Linear(5, 4)),
        lambda: parametrizations.orthogonal(nn.Linear(5, 4), orthogonal_map="householder"),
        lambda: torch.nn.utils.spectral_norm(nn.Linear(5, 4)),
        lambda: prune.random_unstructured(nn.Linear(5, 4), "weight", 0.4),
        lambda: prune.ln_structured(prune.l1_unstructured(nn.Linear(5, 4), "weight", 0.2), "weight", 0.25, n=2, dim=0),
    ],
)
def test_parametrized_weight_is_the_effective_one(wrap: Callable[[], nn.Module]) -> None:
    """If this failed, the energy would be that of a tensor which the forward pass never multiplies by.

    Reading in training mode must not take the power iteration of spectral norm: twice the same, buffers untouched.
    """
    torch.manual_seed(0)
    layer = wrap()
    layer(torch.randn(3, 5))
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    (group,) = neuron_groups(layer)
    assert layer.training
    matrix = group.matrix()
    assert torch.equal(matrix, group.matrix())
    assert layer.training
    assert all(torch.equal(buffers[name], buffer) for name, buffer in layer.named_buffers())
    layer.eval()
    torch.testing.assert_close(nn.functional.linear(torch.eye(5), matrix, layer.bias), layer(torch.eye(5)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weight_norm_by_hook_is_the_effective_weight() -> None:
    """If this failed, models that still use the older weight norm would be measured by the wrong tensor."""
    layer = torch.nn.utils.weight_norm(nn.Linear(5, 4))
    with torch.no_grad():
        layer.weight_g.mul_(torch.arange(1.0, 5.0)[:, None])
    (group,) = neuron_groups(layer)
    assert group.parameters == ("weight_g", "weight_v")
    torch.testing.assert_close(nn.functional.linear(torch.eye(5), group.matrix(), layer.bias), layer(torch.eye(5)))

"""Adapters on tied layers: a matrix that two layers compute with is one group, one that is another by now is two."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft")

from hf_mhe.neurons import NeuronGroup, neuron_groups  # noqa: E402
from tests.neurons.adapters.cases import stir, unaccounted  # noqa: E402

Build = Callable[..., nn.Module]
TIE = {"ensure_weight_tying": True}
LLAMA = ("model.embed_tokens", "lm_head")
GPT2 = ("transformer.wte", "lm_head")
T5 = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
BART = ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")

# architecture, its tied layers, peft's config
CASES = {
    "embedding": ("llama", LLAMA, {"target_modules": ["embed_tokens", "q_proj"], **TIE}),
    "both": ("llama", LLAMA, {"target_modules": ["embed_tokens", "lm_head", "q_proj"], **TIE}),
    "both, apart": ("llama", LLAMA, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "another scaling": ("llama", LLAMA, {"target_modules": ["embed_tokens"], "alpha_pattern": {"lm_head": 3}, **TIE}),
    "rsLoRA": ("llama", LLAMA, {"target_modules": ["embed_tokens"], "use_rslora": True, **TIE}),
    "DoRA": ("llama", LLAMA, {"target_modules": ["embed_tokens"], "use_dora": True, **TIE}),
    "head": ("llama", LLAMA, {"target_modules": ["lm_head"]}),
    "all-linear": ("llama", LLAMA, {"target_modules": "all-linear", **TIE}),
    "saved": ("llama", LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], **TIE}),
    "saved head": ("llama", LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], **TIE}),
    "saved apart": ("llama", LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved head apart": ("llama", LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tokens": ("llama", LLAMA, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}),
    "tokens, tied": (
        "llama",
        LLAMA,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [3]}, **TIE},
    ),
    "other tokens": (
        "llama",
        LLAMA,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]}},
    ),
    "gpt2": ("gpt2", GPT2, {"target_modules": ["wte", "c_fc"], "fan_in_fan_out": True, **TIE}),
    "t5": ("t5", T5, {"target_modules": ["shared", "q"], **TIE}),
    "t5, every table": ("t5", T5, {"target_modules": ["embed_tokens", "q"], **TIE}),
    "t5, saved": ("t5", T5, {"target_modules": ["q"], "modules_to_save": ["shared"], **TIE}),
    "t5, tokens": ("t5", T5, {"target_modules": ["q"], "trainable_token_indices": {"shared": [1]}}),
    "bart": ("bart", BART, {"target_modules": ["shared", "q_proj"], **TIE}),
}


def adapted(name: str, build: Build) -> tuple[Any, tuple[str, ...]]:
    """The small model with its adapters, everything that trains moved by chance, and the names of its tied layers."""
    architecture, tied, arguments = CASES[name]
    torch.manual_seed(0)
    model = build(architecture, tie_word_embeddings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of ties that it does not keep
        return stir(peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, **arguments))).eval(), tied


def computed(module: nn.Module, d: int = 32, entries: int = 60) -> Tensor:
    """The rows that a layer computes with: what a table looks up, what a head multiplies with."""
    with torch.no_grad():
        try:
            found: Tensor = module(torch.arange(entries))
        except RuntimeError:  # a head wants numbers
            found = module(torch.eye(d)).T
    return found


@pytest.mark.parametrize("name", CASES)
def test_tied_layers_are_one_group_where_they_compute_with_one_matrix(name: str, build: Build) -> None:
    """Else one matrix would be counted twice, and pulled at a second time as an output layer."""
    model, tied = adapted(name, build)
    expected: list[tuple[list[str], Tensor]] = []
    for path in tied:
        rows = computed(model.base_model.model.get_submodule(path))
        same = next((names for names, known in expected if torch.allclose(known, rows, atol=1e-5)), None)
        if same is None:
            expected.append(([path], rows))
        else:
            same.append(path)
    groups = neuron_groups(model)
    found = [group for group in groups if {group.name, *group.aliases} & set(tied)]
    assert [sorted((group.name, *group.aliases)) for group in found] == [sorted(names) for names, _ in expected]
    for group, (names, rows) in zip(found, expected, strict=True):
        assert group.role == ("output" if names == ["lm_head"] else "embedding")
        torch.testing.assert_close(group.matrix(), rows, rtol=1e-4, atol=1e-5)
    assert unaccounted(model) == unaccounted(model, adapters="own") == []


def _trained(groups: list[NeuronGroup]) -> list[Tensor]:
    return [tensor for group in groups for tensor in group.tensors() if tensor.requires_grad]


@pytest.mark.parametrize("adapters", ["effective", "own"])
@pytest.mark.parametrize("name", CASES)
def test_what_trains_is_in_one_group(name: str, adapters: Any, build: Build) -> None:
    """Else a trained matrix would be regularized as often as it has names, or not at all."""
    model, _ = adapted(name, build)
    trained = _trained(neuron_groups(model, trainable_only=True, adapters=adapters))
    starts = [tensor.data_ptr() for tensor in trained]
    if name != "another scaling" and not (name == "DoRA" and adapters == "effective"):  # two weights of the same two
        assert len(starts) == len(set(starts))
    parameters = {parameter.data_ptr(): key for key, parameter in model.named_parameters() if parameter.requires_grad}
    left = [key for start, key in parameters.items() if start not in starts]
    if adapters == "effective":
        assert left == []
    else:  # rows of trained tokens and DoRA's lengths are no matrices of an adapter
        assert all("trainable_tokens" in key or "magnitude" in key for key in left)


def test_the_gradient_of_a_tied_adapter_is_that_of_one_matrix(build: Build) -> None:
    """Else a step would go further than its formula, by the part of the head that is the same matrix."""
    model, _ = adapted("embedding", build)
    layer = model.base_model.model.model.embed_tokens
    a, b = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    weight, scale = layer.base_layer.weight.detach(), 2.0
    groups = neuron_groups(model, trainable_only=True, include=["model.embed_tokens", "*.q_proj"])
    sum(group.matrix().square().sum() for group in groups if group.name == "model.embed_tokens").backward()
    product = weight + scale * (b @ a).T  # d/dA |W + s (BA)'|^2 = 2 s B' (W + s (BA)')'
    torch.testing.assert_close(a.grad, 2 * scale * b.detach().T @ product.detach().T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.grad, 2 * scale * product.detach().T @ a.detach().T, rtol=1e-4, atol=1e-5)
    head = model.base_model.model.lm_head
    before = a.detach().clone()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    torch.testing.assert_close(a.detach(), before - 1e-3 * a.grad)
    assert torch.equal(head.lora_B["default"].weight, a.T)  # the head has moved with the table


def test_two_parameters_over_one_storage_are_one_group() -> None:
    """Else a tie made by hand, of values and not of parameters, would be two matrices."""
    table, head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
    head.weight = nn.Parameter(table.weight.data)
    (group,) = neuron_groups(nn.ModuleDict({"head": head, "table": table}))
    assert (group.name, group.role, group.aliases) == ("table", "embedding", ("head",))
    assert group.parameters == ("table.weight", "head.weight")


def test_parts_of_one_storage_are_groups_of_their_own() -> None:
    """Else weights that an engine lays side by side in one buffer would be taken for one."""
    flat, square = torch.randn(3 * 20), torch.randn(4, 4)
    layers = [nn.Linear(5, 4) for _ in range(3)]
    for part, layer in zip(flat.split(20), layers, strict=True):
        layer.weight = nn.Parameter(part.view(4, 5))
    assert len(neuron_groups(nn.ModuleList(layers))) == 3
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    one.weight, other.weight = nn.Parameter(square), nn.Parameter(square.t())  # rows of one, columns of the other
    assert len(neuron_groups(nn.ModuleList([one, other]))) == 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_without_values_are_kept_apart(device: str) -> None:
    """Else a model that is not loaded yet would have one group for all layers of a shape, and its ties lost."""
    with torch.device(device):
        layers = nn.ModuleList([nn.Linear(5, 4, bias=False) for _ in range(3)])
    layers[2].weight = layers[0].weight
    assert [group.aliases for group in neuron_groups(layers)] == [("2",), ()]

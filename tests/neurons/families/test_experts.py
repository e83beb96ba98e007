"""An expert's groups are the matrices that the mixture multiplies by for it: the layer's own forward decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from hf_mhe.neurons import coverage, neuron_groups
from tests.neurons.families.watch import zeroed

_SIZES = {"hidden_size": 12, "intermediate_size": 10, "moe_intermediate_size": 10, "num_attention_heads": 2}
_EXPERTS = 3


def _gpt_oss_glu(gate: Tensor, up: Tensor) -> Tensor:
    """GPT-OSS: the activated gate times up plus one, both limited to 7."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def _silu_glu(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


def _relu2(gate: Tensor, up: Tensor) -> Tensor:
    return up.relu().square()


# model folder, class of the experts, class of the config and what it calls the number of experts, what they compute
LAYERS: dict[str, tuple[str, str, str, Callable[[Tensor, Tensor], Tensor]]] = {
    "mixtral": ("MixtralExperts", "MixtralConfig", "num_local_experts", _silu_glu),
    "qwen3_moe": ("Qwen3MoeExperts", "Qwen3MoeConfig", "num_experts", _silu_glu),
    "olmoe": ("OlmoeExperts", "OlmoeConfig", "num_experts", _silu_glu),
    "deepseek_v3": ("DeepseekV3Experts", "DeepseekV3Config", "n_routed_experts", _silu_glu),
    "gpt_oss": ("GptOssExperts", "GptOssConfig", "num_local_experts", _gpt_oss_glu),
    "aria": ("AriaExperts", "AriaTextConfig", "moe_num_experts", _silu_glu),
    "nemotron_h": ("NemotronHExperts", "NemotronHConfig", "n_routed_experts", _relu2),
    "llama4": ("Llama4TextExperts", "Llama4TextConfig", "num_local_experts", _silu_glu),
    "dbrx": ("DbrxExperts", "DbrxFFNConfig", "moe_num_experts", _silu_glu),
}


def _make(name: str) -> nn.Module:
    """The experts of one layer, with random weights and no biases."""
    import importlib

    cls, config_class, count, _ = LAYERS[name]
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    configuration = importlib.import_module(f"transformers.models.{name}.configuration_{name}")
    sizes = {"hidden_size": 12, "ffn_hidden_size": 10} if name == "dbrx" else _SIZES
    config = getattr(configuration, config_class)(**{**sizes, count: _EXPERTS})
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    layer = getattr(module, cls)(config)
    for parameter_name, parameter in layer.named_parameters():
        nn.init.zeros_(parameter) if parameter_name.endswith("bias") else nn.init.normal_(parameter)
    return nn.ModuleDict({"experts": layer})


def _routed(name: str, layer: nn.Module, tokens: Tensor, expert: int) -> Tensor:
    """The layer's output for tokens that are all sent to one expert with weight 1."""
    if name == "llama4":  # tokens of each expert below each other, all experts computed
        return layer.experts(tokens.repeat(_EXPERTS, 1)).view(_EXPERTS, *tokens.shape)[expert]
    index = torch.full((len(tokens), 1), expert)
    weights = torch.ones(len(tokens), 1)
    given = tokens[None] if name == "dbrx" else tokens
    return layer.experts(given, index, weights).view(tokens.shape)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_an_expert_computes_with_its_groups(name: str) -> None:
    """If this failed, an expert's matrices would be another's, transposed, or gate and up mixed."""
    layer, glu = _make(name), LAYERS[name][3]
    found = coverage(layer)
    assert all("bias" in parameter for parameter in found.skipped)
    groups = {group.name.removeprefix("experts.").removeprefix("mlp."): group for group in found.groups}
    parts = ("up", "down") if name == "nemotron_h" else ("gate", "up", "down")
    assert set(groups) == {f"{expert}.{part}" for expert in range(_EXPERTS) for part in parts}
    tokens = torch.randn(4, 12)
    with torch.no_grad():
        before = [_routed(name, layer, tokens, expert) for expert in range(_EXPERTS)]
        for expert in range(_EXPERTS):
            up, down = (groups[f"{expert}.{part}"].matrix() for part in ("up", "down"))
            gate = groups[f"{expert}.gate"].matrix() if "gate" in parts else up
            assert (up.shape, down.shape) == ((10, 12), (12, 10))
            torch.testing.assert_close(
                glu(tokens @ gate.T, tokens @ up.T) @ down.T, before[expert], rtol=1e-4, atol=1e-4
            )
    for expert in range(_EXPERTS):
        for part in parts:
            with zeroed(groups[f"{expert}.{part}"]), torch.no_grad():
                after = [_routed(name, layer, tokens, other) for other in range(_EXPERTS)]
            for other in range(_EXPERTS):
                assert torch.equal(after[other], before[other]) == (other != expert), (expert, part, other)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next"])
def test_zeroing_an_expert_changes_only_the_tokens_sent_to_it(name: str, build: Callable[..., Any]) -> None:
    """If this failed, groups of a whole model would be numbered otherwise than its router numbers the experts."""
    model = build(name, experts_implementation="eager").eval()
    ids = {"input_ids": torch.arange(1, 41).view(2, 20)}
    groups = {group.name: group for group in neuron_groups(model)}
    owner = next(name for name in groups if name.endswith(".mlp.experts.0.down")).removesuffix(".0.down")
    seen: dict[str, Tensor] = {}

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(routes=inputs[1].clone(), output=output.clone())

    model.get_submodule(owner).register_forward_hook(note)
    with torch.no_grad():
        model(**ids)
        whole = dict(seen)
        for expert in range(4):
            sent = (whole["routes"] == expert).any(-1)
            assert sent.any()
            assert not sent.all()
            with zeroed(groups[f"{owner}.{expert}.down"]):
                model(**ids)
            changed = (seen["output"] != whole["output"]).flatten(0, -2).any(-1)
            assert torch.equal(changed, sent.flatten())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next"])
def test_routers_are_groups_and_gradients_reach_the_stack(name: str, build: Callable[..., Any]) -> None:
    """If this failed, routers would be unnamed parameters, or a penalty on an expert would train nothing or others."""
    model = build(name)
    groups = neuron_groups(model)
    routers = [group for group in groups if group.kind == "router"]
    assert {(group.n, group.d) for group in routers} == {(4, 32)}
    expert = next(group for group in groups if group.name.endswith("experts.2.up"))
    (stack,) = expert.tensors()
    assert stack.ndim == 3
    (grad,) = torch.autograd.grad(expert.matrix().square().sum() / 2, stack)
    touched = grad.flatten(1).any(1)
    assert touched.nonzero().flatten().tolist() == [2]
    assert torch.equal(grad[grad != 0].sort().values, expert.matrix().detach().flatten().sort().values)

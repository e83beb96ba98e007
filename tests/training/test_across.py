"""Training that pushes whole experts, heads and layers apart."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import HfArgumentParser

from hf_mhe import MHEArguments, MHEConfig, MHEError, MHERegularizer
from hf_mhe.neurons import stacks
from tests.neurons.with_members import MODELS
from tests.oracle import slow_energy

ALONE: dict[str, Any] = {"hidden_weight": 0.0, "output_weight": 0.0, "across_weight": 0.7}


class Experts(nn.Module):
    """Experts in a list; all are asked."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)) for _ in range(experts)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([expert(inputs) for expert in self.experts]).mean(0)


def make_experts(experts: int = 4) -> Experts:
    torch.manual_seed(0)
    return Experts(experts).double()


def by_hand(name: str, model: Any) -> dict[str, list[list[Tensor]]]:
    """The matrices of each member of each stack, cut out of the parameters by hand."""
    if name == "listed":
        return {"experts": [list(expert.parameters()) for expert in model.experts]}
    found = {}
    layers = model.encoder.layer if name == "bert" else model.model.layers
    for i, layer in enumerate(layers):
        if name == "bert":
            own = layer.attention.self
            of_heads = [layer_.weight.chunk(4) for layer_ in (own.query, own.key, own.value)]
            found[f"heads {i}"] = [list(head) for head in zip(*of_heads, strict=True)]
        elif name == "llama":  # half as many keys and values
            own = layer.self_attn
            found[f"queries {i}"] = [[head] for head in own.q_proj.weight.chunk(4)]
            keys = zip(own.k_proj.weight.chunk(2), own.v_proj.weight.chunk(2), strict=True)
            found[f"keys {i}"] = [list(head) for head in keys]
        else:
            experts = layer.mlp.experts
            first, down = experts.gate_up_proj, experts.down_proj
            if name == "gpt-oss":  # (expert, in, out), a gate and an up in turn
                found[f"experts {i}"] = [[first[e, :, ::2], first[e, :, 1::2], down[e]] for e in range(len(down))]
            else:
                found[f"experts {i}"] = [[*first[e].chunk(2), down[e]] for e in range(len(down))]
    return found


def layers_by_hand(name: str, model: Any) -> dict[str, list[list[Tensor]]]:
    layers = model.encoder.layer if name == "bert" else model.model.layers
    return {"layers": [[p for p in layer.parameters() if p.dim() == 2] for layer in layers]}


def slow_penalty(members: dict[str, list[list[Tensor]]], tangent: float | None = 0.95, **potential: Any) -> Tensor:
    """The sum over stacks of the energy of the stacked directions."""
    total = torch.zeros((), dtype=torch.float64)
    for stack in members.values():
        rows = torch.stack([torch.cat([(t / t.norm()).flatten() for t in each]) for each in stack])
        total = total + slow_energy(rows, tangent_above=tangent, **potential)
    return total


CASES = [
    *(("experts", name) for name in ("mixtral", "gpt-oss", "qwen2-moe", "listed")),
    *(("heads", name) for name in ("bert", "llama")),
    *(("layers", name) for name in ("bert", "llama")),
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_value_and_gradient_are_those_of_stacked_members(kind: str, name: str) -> None:
    """Something else than the members' directions would be pushed apart, or a matrix of theirs be forgotten."""
    torch.manual_seed(0)
    model = make_experts() if name == "listed" else MODELS[name]().double()
    expected = 0.7 * slow_penalty((layers_by_hand if kind == "layers" else by_hand)(name, model))
    expected.backward()
    slow = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    found = MHERegularizer(model, MHEConfig(across=kind, **ALONE)).penalty()
    (3 * found).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert {key for key, p in model.named_parameters() if p.grad is not None} == slow.keys()
    for key, p in model.named_parameters():
        if p.grad is not None:
            assert (p.grad - 3 * slow[key]).abs().max() < 1e-12, key
    assert max(float(gradient.abs().max()) for gradient in slow.values()) > 1e-3


@pytest.mark.parametrize("changes", [{"s": 0}, {"s": 1, "distance": "angular"}, {"softening": 0.3}, {"space": "full"}])
def test_the_configs_energy_in_full_space(changes: dict[str, Any]) -> None:
    """Experts would be pushed apart by another energy than asked for; or turned back from the other side."""
    model = make_experts()
    with torch.no_grad():
        for p, q in zip(model.experts[0].parameters(), model.experts[1].parameters(), strict=True):
            q.copy_(-p + 0.1 * q)
    found = MHERegularizer(model, MHEConfig(across=["experts"], **ALONE, **changes)).penalty()
    softened = {"tangent": None} if "softening" in changes else {}
    full = {key: value for key, value in changes.items() if key != "space"}
    expected = 0.7 * slow_penalty(by_hand("listed", model), **softened, **full)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_energy_between_modules_is_added_to_another_objective_of_neurons() -> None:
    """Experts would be made orthogonal by a number that is none of theirs, or the energy's settings be refused."""
    model = make_experts()
    neurons = MHERegularizer(model, MHEConfig(objective="soft_orthogonality", hidden_weight=0.3))
    config = MHEConfig(objective="soft_orthogonality", hidden_weight=0.3, across="experts", across_weight=0.7, s=1)
    expected = neurons.penalty() + 0.7 * slow_penalty(by_hand("listed", model), s=1)
    assert MHERegularizer(model, config).penalty().item() == pytest.approx(expected.item(), rel=1e-12)
    assert MHEConfig.from_dict(config.to_dict()) == config
    with pytest.raises(MHEError, match=r"s=1\.0 has no effect with objective=.soft_orthogonality."):
        MHEConfig(objective="soft_orthogonality", s=1)
    with pytest.raises(MHEError, match="space='full' has no effect"):
        MHEConfig(objective="soft_orthogonality", across="experts", space="full")


@pytest.mark.slow
def test_a_budget_draws_both_from_another_objective_and_between_modules() -> None:
    """With a budget, one of the two would be left out, counted twice, or stop the training."""
    model = make_experts()
    config = MHEConfig(objective="srip", hidden_weight=0.3, across="experts", across_weight=0.7, budget=1.0)
    exact = MHERegularizer(model, config).penalty().item()
    drawn = MHERegularizer(model, config, step_operations=1e9).advance()
    assert drawn is not None
    assert drawn.item() == pytest.approx(exact, rel=1e-12)
    few = [MHERegularizer(model, config, step_operations=3e3, seed=seed).advance() for seed in range(200)]
    values = torch.tensor([0.0 if each is None else each.item() for each in few])
    assert values.std() > 0
    assert values.mean().item() == pytest.approx(exact, abs=4 * values.std().item() / 200**0.5)


def test_it_is_added_to_the_neurons_penalty() -> None:
    """One of the two would replace the other, or the weight be another than `hidden_weight` by default."""
    torch.manual_seed(0)
    model = MODELS["mixtral"]().double()
    neurons = MHERegularizer(model, MHEConfig(hidden_weight=0.3))
    both = MHERegularizer(model, MHEConfig(hidden_weight=0.3, across=["experts", "layers"]))
    added = slow_penalty(by_hand("mixtral", model)) + sum(
        slow_energy(
            torch.stack([torch.cat([(g.matrix() / g.matrix().norm()).flatten() for g in m]) for m in stack.members])
        )
        for stack in stacks(model, ["layers"])
    )
    assert (both.penalty() - neurons.penalty()).item() == pytest.approx(0.3 * added.item(), rel=1e-10)
    assert both.energies() == neurons.energies()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_part_the_same_way_each_time(dtype: torch.dtype) -> None:
    """Two runs, or the ranks of one, would go different ways; or weights of half precision would stay copies."""

    def gradients() -> list[Tensor]:
        model = make_experts().to(dtype)
        for expert in model.experts:
            expert.load_state_dict(model.experts[0].state_dict())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            MHERegularizer(model, MHEConfig(across="experts", **ALONE)).penalty().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    first, second = gradients(), gradients()
    assert len(first) == 8
    assert all(torch.equal(a, b) and a.dtype == dtype for a, b in zip(first, second, strict=True))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(first[::2], 2))


def test_without_part_copies_they_stay() -> None:
    """The word that switches the push off would not."""
    model = make_experts()
    for expert in model.experts:
        expert.load_state_dict(model.experts[0].state_dict())
    MHERegularizer(model, MHEConfig(across="experts", part_copies=False, **ALONE)).penalty().backward()
    assert all(p.grad is not None and p.grad.abs().max() < 1e-12 for p in model.parameters())
    with pytest.raises(MHEError, match=r"across experts 'experts\.\*' is inf: two of its members coincide"):
        MHERegularizer(model, MHEConfig(across="experts", softening=0, **ALONE)).penalty()


def test_frozen_members_repel_and_stay() -> None:
    """New experts beside frozen ones could not be trained, or the frozen ones would be pushed."""
    model = make_experts()
    for expert in (model.experts[0], model.experts[2]):
        expert.requires_grad_(False)
    regularizer = MHERegularizer(model, MHEConfig(across="experts", **ALONE))
    found = regularizer.penalty()
    found.backward()
    assert found.item() == pytest.approx(0.7 * slow_penalty(by_hand("listed", model)).item(), rel=1e-12)
    assert [p.grad is not None for p in model.parameters()] == [False, False, True, True] * 2
    model.requires_grad_(False)
    assert regularizer.penalty().item() == 0
    with pytest.warns(UserWarning, match="across=.'experts'. has no effect until a module is unfrozen"):
        MHERegularizer(model, MHEConfig(across="experts", **ALONE))


def test_adapters_part_experts_by_what_they_compute_with() -> None:
    """LoRA on experts would be pushed apart as matrices of their own, or not at all."""
    import peft

    model = peft.get_peft_model(
        make_experts(), peft.LoraConfig(target_modules=r"experts\.\d\.[02]", r=2, init_lora_weights=False)
    ).double()
    base = model.base_model.model
    effective = [
        [layer.get_base_layer().weight + layer.get_delta_weight("default") for layer in (expert[0], expert[2])]
        for expert in base.experts
    ]
    expected = 0.7 * slow_penalty({"experts": effective})
    expected.backward()
    slow = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    found = MHERegularizer(model, MHEConfig(across="experts", **ALONE)).penalty()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for key, gradient in slow.items():
        p = dict(model.named_parameters())[key]
        assert p.grad is not None
        assert (p.grad - gradient).abs().max() < 1e-12


def test_adapters_that_come_later_are_noticed() -> None:
    """The penalty would end without a word when an adapter freezes the experts."""
    import peft

    model = make_experts()
    regularizer = MHERegularizer(model, MHEConfig(across="experts", **ALONE))
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=r"experts\.\d\.[02]", r=2), model)
    with pytest.raises(MHEError, match=r"neuron group 'experts\.0\.0': .*"):
        regularizer.penalty()


@pytest.mark.slow
def test_a_budget_draws_stacks_without_bias() -> None:
    """Within a budget the experts would get less of the penalty than asked for, or all that it allows."""
    model = nn.ModuleDict({str(i): make_experts(4) for i in range(4)})
    with torch.no_grad():
        for p in model["0"].parameters():
            p.abs_()  # so that its experts are nearer to each other
    exact = MHERegularizer(model, MHEConfig(across="experts", **ALONE)).penalty().item()
    operations = 4 * 3 * 4**2 * 45  # of the walks
    regularizer = MHERegularizer(
        model, MHEConfig(across="experts", budget=0.5, **ALONE), step_operations=1.5 * operations
    )
    values = [0.0 if (p := regularizer.advance()) is None else p.item() for _ in range(250)]
    assert min(values) < 0.8 * exact < 1.2 * exact < max(values)
    assert sum(values) / len(values) == pytest.approx(exact, rel=0.05)


def test_off_is_off_and_alone_is_enough() -> None:
    """A sweep over the weight could not contain the baseline, or experts not be pushed apart alone."""
    assert MHEConfig(hidden_weight=0, output_weight=0, across="experts").is_off
    assert not MHEConfig(hidden_weight=0, output_weight=0, across="experts", across_weight=0.1).is_off
    assert MHEConfig(hidden_weight=0, output_weight=0, across=[], across_weight=1).is_off
    model = make_experts()
    nothing = MHERegularizer(model, MHEConfig(hidden_weight=0, output_weight=0, across="experts"))
    loss = model(torch.ones(1, 6, dtype=torch.float64)).sum()
    assert nothing(loss) is loss
    regularizer = MHERegularizer(model, MHEConfig(across="experts", **ALONE))
    assert (regularizer(loss) - loss).item() == pytest.approx(regularizer.penalty().item())
    assert repr(regularizer) == "MHERegularizer(Experts: across experts x 0.7)"
    logs = regularizer.logs()
    assert logs["mhe_across_energy/experts"] == pytest.approx(regularizer.penalty().item() / 0.7)
    assert logs["mhe_loss"] == pytest.approx(regularizer.penalty().item())
    assert regularizer.logs() == {}


def test_a_step_with_several_passes_counts_once() -> None:
    """Sharpness-aware minimization would log its first pass, or push the experts twice."""
    model = make_experts()
    regularizer = MHERegularizer(model, MHEConfig(across="experts", **ALONE))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = torch.ones(2, 6, dtype=torch.float64)
    for _ in range(2):
        for _ in range(2):
            optimizer.zero_grad()
            regularizer(model(inputs).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert regularizer.step == 2
    assert regularizer.logs()["mhe_across_energy/experts"] == pytest.approx(regularizer.penalty().item() / 0.7)


def test_the_config_and_its_arguments(tmp_path: Path) -> None:
    """A training could not be repeated from its config, or not be started from a command line."""
    config = MHEConfig(across=("heads", "experts", "heads"), across_weight=1)  # type: ignore[arg-type]
    assert config.across == ["heads", "experts"]
    assert MHEConfig(across="layers").across == ["layers"]
    config.save_pretrained(tmp_path)
    assert MHEConfig.from_pretrained(tmp_path) == config
    parser = HfArgumentParser(MHEArguments)  # type: ignore[arg-type]
    (parsed,) = parser.parse_args_into_dataclasses(["--mhe_across", "heads", "experts", "--mhe_across_weight", "1"])
    assert parsed.to_config() == config
    (parsed,) = parser.parse_args_into_dataclasses([])
    assert parsed.to_config() == MHEConfig()
    with pytest.raises(MHEError, match="across must be one of 'experts', 'heads', 'layers'; got 'expert'"):
        MHEConfig(across=["expert"])
    with pytest.raises(MHEError, match="across must be one of 'experts', 'heads', 'layers'; got 3"):
        MHEConfig(across=3)  # type: ignore[arg-type]
    with pytest.raises(MHEError, match="across_weight must be a finite number >= 0; got -1"):
        MHEConfig(across_weight=-1)


def test_a_model_without_experts_is_refused_at_once() -> None:
    """A training would go on without what was asked for."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(MHEError, match=r"across='experts': Sequential has no two experts .* layers: 1 x 2 \(\*\)"):
        MHERegularizer(model, MHEConfig(across=["layers", "experts"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MHERegularizer(model, MHEConfig(across="layers"))

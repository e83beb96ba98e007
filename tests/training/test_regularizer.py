"""What is bound, what is computed, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.parallelism_config import ParallelismConfig
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, MixtralConfig

from hf_mhe import MHEConfig, MHEError, MHERegularizer, hyperspherical_energy
from hf_mhe.training import mean_energy
from hf_mhe.training.engines.plan import balance
from hf_mhe.training.engines.refuse import refuse_distributed_type, refuse_parallelism
from tests.training.cases import CASES, make_gpt2, make_tiny, slow_energy, slow_penalty
from tests.training.loops import forget_accelerate


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("s", [0.0, 1.0, 2.0, 2.5])
def test_penalty_is_the_formula(name: str, s: float) -> None:
    """The objective would not be the one that the config describes."""
    model = CASES[name].make().double()
    penalty = MHERegularizer(model, MHEConfig(s=s, hidden_weight=0.7, output_weight=0.3)).penalty()
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(slow_penalty(CASES[name].terms(model, 0.7, 0.3), s).item(), rel=1e-10)


def test_roles_and_patterns_choose_the_groups() -> None:
    """A user would regularize layers that were left out, or leave out layers that were meant."""
    model = make_gpt2()
    names = {group.name for group in MHERegularizer(model, MHEConfig()).groups}
    attention = {f"attn.{layer}" for layer in ("c_attn.q", "c_attn.k", "c_attn.v", "c_proj")}
    assert names == {f"transformer.h.0.{layer}" for layer in attention | {"mlp.c_fc", "mlp.c_proj"}}
    config = MHEConfig(hidden_weight=0, embedding_weight=1, only_competing=False)
    embeddings = MHERegularizer(model, config).groups
    assert {group.name for group in embeddings} == {"transformer.wte", "transformer.wpe"}
    chosen = MHERegularizer(model, MHEConfig(include="*.mlp.*", exclude="*.c_proj")).groups
    assert [group.name for group in chosen] == ["transformer.h.0.mlp.c_fc"]


def test_small_layers_of_one_shape_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of many small layers would pay for calls what it should pay for work; or one layer for another's."""
    torch.manual_seed(0)
    shapes = [(16, 8), (24, 8), (16, 8), (700, 4), (16, 8), (700, 4), (16, 8)]
    model = nn.ModuleList(nn.Linear(d, n, bias=False) for n, d in shapes).double()
    nn.init.zeros_(model[2].weight)  # no directions yet, and it stands in no other's way
    config = MHEConfig(output=["4"], hidden_weight=0.5, output_weight=2.0, softening=0)
    regularizer = MHERegularizer(model, config)
    walked = []
    exact = mean_energy.energy_of

    def spy(weight: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        walked.append(tuple(weight.shape))
        return exact(weight, *args, **options)

    monkeypatch.setattr(mean_energy, "energy_of", spy)

    def own(layer: nn.Module) -> torch.Tensor:
        return hyperspherical_energy(layer.weight, space="full" if layer is model[4] else "half", walk="dense")

    expected = {name: own(layer) for name, layer in model.named_children() if name != "2"}
    energies = regularizer.energies()
    assert energies["2"] == 0
    assert {name: energies[name] for name in expected} == {
        name: pytest.approx(value.item(), rel=1e-10) for name, value in expected.items()
    }
    nn.init.normal_(model[2].weight)
    walked.clear()
    penalty = regularizer.penalty()
    assert sorted(walked) == [(3, 16, 8), (16, 8), (24, 8), (700, 4), (700, 4)]
    gradients = torch.autograd.grad(penalty, list(model.parameters()))
    for layer, gradient in zip(model, gradients, strict=True):
        (wanted,) = torch.autograd.grad((2.0 if layer is model[4] else 0.5) * own(layer), layer.weight)
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-12)


def test_a_stack_of_experts_has_one_gradient() -> None:
    """Each expert's would be of the whole stack's size: a hundred experts, a hundred stacks of zeros added up."""
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32, num_local_experts=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double()
    regularizer = MHERegularizer(model, MHEConfig(include="*.experts.*", softening=0))
    assert len(regularizer.groups) == 24
    penalty = regularizer.penalty()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        penalty.backward()
    stacks = {name: parameter for name, parameter in model.named_parameters() if ".experts." in name}
    names = [event.key for event in profiler.key_averages()]
    assert "aten::select_backward" not in names
    weight = MHEConfig().hidden_weight
    own = [weight * hyperspherical_energy(group.matrix(), space="half", walk="dense") for group in regularizer.groups]
    expected = torch.autograd.grad(sum(own), list(stacks.values()))
    for parameter, wanted in zip(stacks.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-8, atol=1e-12)


def test_energies_are_each_groups_own() -> None:
    """The log would show a number that belongs to another layer, or one with the weight in it."""
    model = make_tiny().double()
    energies = MHERegularizer(model, MHEConfig(hidden_weight=5.0, output_weight=0.1)).energies()
    assert energies == {
        "body": pytest.approx(slow_energy(model.body.weight, space="half").item(), rel=1e-10),
        "middle": pytest.approx(slow_energy(model.middle.weight, space="half").item(), rel=1e-10),
        "classifier": pytest.approx(slow_energy(model.classifier.weight).item(), rel=1e-10),
    }


def test_frozen_groups_are_not_computed_and_come_back_when_unfrozen() -> None:
    """Time would go into layers that do not train, or layers unfrozen later would never be regularized."""
    model = make_tiny()
    model.body.requires_grad_(False)
    regularizer = MHERegularizer(model)
    assert [group.name for group in regularizer.groups] == ["middle", "classifier"]
    model.body.requires_grad_(True)
    model.middle.requires_grad_(False)
    assert [group.name for group in regularizer.groups] == ["body", "classifier"]


def test_dead_neurons_take_no_part() -> None:
    """One pruned neuron would end the training, or have a gradient in no direction."""
    model = make_tiny().double()
    with torch.no_grad():
        model.body.weight[4] = 0
    penalty = MHERegularizer(model, MHEConfig(include="body")).penalty()
    penalty.backward()
    live = [row for row in range(9) if row != 4]
    assert penalty.item() == pytest.approx(
        slow_energy(model.body.weight[live].detach(), space="half").item(), rel=1e-10
    )
    assert model.body.weight.grad is not None
    assert not model.body.weight.grad[4].any()
    assert model.body.weight.grad[live].any(dim=1).all()


def test_a_layer_that_starts_at_zero_waits() -> None:
    """LoRA's second factor starts at zero: training with an adapter would stop before its first step."""
    model = make_tiny().double()
    with torch.no_grad():
        model.body.weight.zero_()
    regularizer = MHERegularizer(model, MHEConfig(include=["body", "middle"]))
    assert regularizer.energies()["body"] == 0.0
    regularizer(torch.zeros((), dtype=torch.float64)).backward()
    assert model.middle.weight.grad is not None
    assert model.middle.weight.grad.any()
    assert model.body.weight.grad is None or not model.body.weight.grad.any()


def test_coinciding_neurons_are_named_with_the_remedy() -> None:
    """Training would go on with an infinite loss."""
    model = make_tiny()
    with torch.no_grad():
        model.middle.weight[3] = 2 * model.middle.weight[5]
    regularizer = MHERegularizer(model, MHEConfig(softening=0))
    with pytest.raises(MHEError, match=r"'middle' is inf.*leave softening at its default.*exclude='middle'"):
        regularizer.penalty()
    for softening in ("auto", 1e-3):
        softened = MHERegularizer(model, MHEConfig(softening=softening)).penalty()
        softened.backward()
        assert torch.isfinite(softened)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_weights_are_named(value: float) -> None:
    """A NaN in one layer would be reported as a NaN of the whole loss."""
    model = make_tiny()
    with torch.no_grad():
        model.middle.weight[2, 3] = value
    with pytest.raises(MHEError, match=r"'middle': .*not finite"):
        MHERegularizer(model, MHEConfig()).penalty()


def test_nothing_to_regularize_says_why() -> None:
    """A training without any penalty would be published as one with MHE."""
    frozen = make_tiny().requires_grad_(False)
    with pytest.warns(UserWarning, match=r"TinyClassifier: all 3 groups .* frozen .*hidden 2, output 1, embedding 0"):
        MHERegularizer(frozen)
    with pytest.raises(MHEError, match=r"TinyClassifier: no group .*hidden 2.*embedding_weight=1"):
        MHERegularizer(make_tiny(), MHEConfig(hidden_weight=0, output_weight=0, embedding_weight=1))
    with pytest.raises(MHEError, match="LayerNorm has no neuron groups"):
        MHERegularizer(nn.LayerNorm(4))
    with pytest.raises(MHEError, match=r"Sequential has no neuron groups .*one neuron only"):
        MHERegularizer(nn.Sequential(nn.Linear(4, 1)))
    with pytest.raises(MHEError, match=r"torch\.nn\.Module; got str"):
        MHERegularizer("bert-base-uncased")  # type: ignore[arg-type]
    with pytest.raises(MHEError, match="bdoy"):
        MHERegularizer(make_tiny(), MHEConfig(include="bdoy"))


def test_patterns_that_leave_nothing_are_named() -> None:
    """If this failed, a user whose exclude undoes his include would be told to add layers to the model."""
    with pytest.raises(MHEError, match=r"include=\['0'\] and exclude=\['0'\] leave no neuron group"):
        MHERegularizer(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), {"include": "0", "exclude": "0"})


def test_a_model_without_values_is_refused_until_it_has_them() -> None:
    """If this failed, a model on the meta device would end in an error from inside torch, or could not be bound."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5))
    regularizer = MHERegularizer(model, {"hidden_weight": 1.0})
    for ask in (regularizer.penalty, regularizer.energies, lambda: regularizer(torch.zeros(()))):
        with pytest.raises(MHEError, match=r"neuron group '0' is on the meta device .* before the first penalty"):
            ask()
    model.to_empty(device="cpu")
    values = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5))
    model.load_state_dict(values.state_dict())
    penalty = regularizer.penalty()
    assert penalty.item() == pytest.approx(MHERegularizer(values, {"hidden_weight": 1.0}).penalty().item(), rel=1e-6)
    penalty.backward()
    assert model[0].weight.grad is not None


def test_all_weights_zero_is_off() -> None:
    """The baseline of a sweep over lambda would be refused, or cost the time of the penalty."""
    regularizer = MHERegularizer(make_tiny(), MHEConfig(hidden_weight=0, output_weight=0))
    loss = torch.tensor(1.0)
    assert regularizer(loss) is loss
    assert regularizer.groups == []
    assert regularizer.penalty().item() == 0
    assert regularizer.energies() == {}


def test_compiled_and_replaced_models_are_followed() -> None:
    """The penalty would pull at weights that the optimizer no longer steps."""
    model = make_tiny()
    compiled: Any = torch.compile(model)
    regularizer = MHERegularizer(compiled)
    assert regularizer.model is model
    replacement = {key: value + 0.1 * torch.randn_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(replacement, assign=True)
    regularizer.penalty().backward()
    assert model.body.weight.grad is not None


def test_a_changed_shape_is_refused() -> None:
    """Labels added after binding would be left out without a word."""
    model = make_tiny()
    regularizer = MHERegularizer(model)
    model.classifier = nn.Linear(7, 5)
    with pytest.raises(MHEError, match="classifier"):
        regularizer.penalty()


def test_regularizer_can_be_pickled() -> None:
    """A trainer that holds one could not be sent to another process."""
    regularizer = MHERegularizer(make_tiny(), MHEConfig(s=1.0))
    copy = pickle.loads(pickle.dumps(regularizer))
    assert copy.config == regularizer.config
    assert copy.penalty().item() == regularizer.penalty().item()
    assert copy.groups[0].matrix() is not regularizer.groups[0].matrix()


class FullyShardedDataParallel(nn.Module):
    """FSDP1 refuses to start without an accelerator; what is told apart is the name of the wrapper."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_engines_that_are_not_served_are_refused_by_name() -> None:
    """A penalty would be computed from a part of the weights."""
    with pytest.raises(MHEError, match=r"torch\.nn\.DataParallel.*DDP"):
        MHERegularizer(nn.DataParallel(make_tiny()))
    with pytest.raises(MHEError, match="FSDP1"):
        MHERegularizer(FullyShardedDataParallel(make_tiny()))
    for distributed_type, engine in (("FSDP", "FSDP1"), ("MEGATRON_LM", "Megatron-LM")):
        with pytest.raises(MHEError, match=f"does not support {engine} .*in one process"):
            refuse_distributed_type(distributed_type)
    refuse_distributed_type("FSDP", is_fsdp2=True)


@pytest.mark.parametrize(("size", "kind"), [("cp_size", "context parallel"), ("sp_size", "sequence parallel")])
def test_parts_of_a_sequence_are_refused_by_name(size: str, kind: str) -> None:
    """A penalty would be added to the loss of a part of a sequence, which nobody has checked the sum of."""
    words = rf"does not support {kind} \({size}=2\) .*parallelism_config"
    config = ParallelismConfig(**{size: 2})
    accelerator = Accelerator(cpu=True)
    regularizer = MHERegularizer(make_tiny().train())
    loss = torch.zeros((), requires_grad=True)
    assert regularizer(loss) is not loss
    accelerator.state.parallelism_config = (
        config  # as of several processes, which accelerate asks for before it is set
    )
    try:
        with pytest.raises(MHEError, match=words):
            regularizer(loss)
    finally:
        forget_accelerate()
    refuse_parallelism(ParallelismConfig())
    refuse_parallelism(None)


def test_printed_it_is_one_line_of_what_it_does() -> None:
    """Printed, it would be an address: which layers train, and at what weight, could not be seen in a notebook."""
    model = make_gpt2()
    config = MHEConfig(hidden_weight=0.5, embedding_weight=0.25, only_competing=False, budget=0.02)
    regularizer = MHERegularizer(model, config, step_operations=1e9)
    line = "MHERegularizer(GPT2LMHeadModel: 6 hidden groups x 0.5, 2 embedding groups x 0.25; budget 0.02"
    assert repr(regularizer) == f"{line})"
    model.transformer.wpe.requires_grad_(False)
    assert str(regularizer) == f"{line}; 1 of 8 frozen)"
    off = MHERegularizer(model, MHEConfig(hidden_weight=0, output_weight=0))
    assert repr(off) == "MHERegularizer(GPT2LMHeadModel: off)"
    tiny = MHERegularizer(make_tiny(), MHEConfig(hidden_weight=1e-3))
    assert repr(tiny) == "MHERegularizer(TinyClassifier: 2 hidden groups x 0.001, 1 output group x 1)"


def test_a_changed_model_can_be_printed_too() -> None:
    """A debugger that shows its variables would raise what the next step is there to raise."""
    model = make_tiny()
    regularizer = MHERegularizer(model)
    model.middle = nn.Identity()
    with pytest.raises(MHEError):
        regularizer.penalty()
    assert "the model no longer has 'weight' in module 'middle'" in repr(regularizer)


@pytest.fixture
def one_rank() -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("sharding", ["tensor", "data over tensor"])
def test_models_sharded_after_the_regularizer_was_bound_and_before(one_rank: DeviceMesh, sharding: str) -> None:
    """A regularizer would be of use on one side of `parallelize_module` and `fully_shard` only."""
    mesh = torch.distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    expected = MHERegularizer(make_tiny()).penalty()
    model = make_tiny()
    regularizer = MHERegularizer(model)
    parallelize_module(model, mesh["tensor"], {"body": ColwiseParallel(), "middle": RowwiseParallel()})
    if sharding == "data over tensor":
        fully_shard(model, mesh=mesh["data"])
    for bound in (regularizer, MHERegularizer(model)):
        torch.testing.assert_close(bound(torch.zeros(())), expected)


def test_placements_that_do_not_say_who_holds_what_are_refused(one_rank: DeviceMesh) -> None:
    """A sum that is not added up yet would be taken for the weight."""
    model = make_tiny()
    regularizer = MHERegularizer(model)
    partial = DTensor.from_local(model.body.weight.detach(), one_rank, [Partial()])
    model.body.weight = nn.Parameter(partial)
    for use in (regularizer.penalty, lambda: MHERegularizer(model)):
        with pytest.raises(MHEError, match=r"'body'.*Partial.*replicate it or shard"):
            use()


def test_ddp_around_tensor_parallel_is_refused(one_rank: DeviceMesh) -> None:
    """It puts the local part of a weight in place of the weight."""
    mesh = torch.distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(make_tiny(), mesh["tensor"], {"body": ColwiseParallel()})
    ddp = DistributedDataParallel(model, device_mesh=mesh["data"])
    with pytest.raises(MHEError, match=r"DDP around tensor parallel.*'body'.*fully_shard"):
        MHERegularizer(ddp)


@pytest.mark.parametrize("reshard", [True, False])
def test_the_gradient_reaches_the_shards_of_fsdp2(one_rank: DeviceMesh, reshard: bool) -> None:
    """Between forward and backward, FSDP2 has temporary parameters in place, whose late gradients are dropped."""
    model = make_tiny().double()
    expected = CASES["tiny"].penalty_gradient(make_tiny().double(), 0.7, 0.3)
    regularizer = MHERegularizer(model, MHEConfig(hidden_weight=0.7, output_weight=0.3))
    fully_shard(model, mesh=one_rank, reshard_after_forward=reshard)
    sharded = dict(model.named_parameters())
    loss = model(torch.ones(2, 6)).logits.sum() * 0
    regularizer(loss).backward()
    assert repr(regularizer).endswith("group x 0.3; DTensors)")
    for name, parameter in sharded.items():
        assert isinstance(parameter, DTensor)
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad.full_tensor(), expected[name], rtol=1e-9, atol=1e-12), name


def test_work_is_balanced_by_cost() -> None:
    """One rank would wait for another that has all of the large layers."""
    assert balance([1, 9, 4, 4, 2], 2) == [0, 0, 1, 1, 1]
    assert balance([5], 4) == [0]
    costs = [n * n * 64 for n in (768, 768, 768, 3072, 768, 2048, 50)]
    loads = [sum(c for c, owner in zip(costs, balance(costs, 2), strict=True) if owner == rank) for rank in (0, 1)]
    assert max(loads) == max(costs)  # what no division can go below, for the largest outweighs the rest

"""Activations that are offloaded or computed again: the penalty is the same, and takes no part in either."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.utils.checkpoint import checkpoint

from hf_mhe import MHEConfig, MHERegularizer
from tests.training.cases import (
    ALL_CASES,
    HIDDEN,
    LEARNING_RATE,
    OUTPUT,
    make_tiny,
    relative_difference,
    starting_gradient,
    tiny_data,
)
from tests.training.trainers import by_formula, config_of, difference

Loss = Callable[[], Tensor]


class Wrapped:
    """How a step computes its loss, with the penalty in it."""

    def around(self, model: Any) -> None:
        """Put wrappers around layers."""

    def saving(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def loss(self, compute: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        return compute(features)


class Offloaded(Wrapped):
    """Everything that autograd saves is on the host, as it is where TRL's trainers offload activations."""

    def saving(self) -> AbstractContextManager[Any]:
        return save_on_cpu()


class LayersOffloaded(Wrapped):
    def around(self, model: Any) -> None:
        model.body, model.middle = offload_wrapper(model.body), checkpoint_wrapper(model.middle)


class Recomputed(Wrapped):
    def __init__(self, reentrant: bool) -> None:
        self.reentrant = reentrant

    def loss(self, compute: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        found: Any = checkpoint(compute, features, use_reentrant=self.reentrant)
        return found


class Both(Recomputed, Offloaded):
    pass


WAYS = {
    "offloaded": Offloaded(),
    "layers": LayersOffloaded(),
    "recomputed": Recomputed(False),
    "recomputed, reentrant": Recomputed(True),
    "both": Both(False),
    "both, reentrant": Both(True),
}


def end_of(way: Wrapped, penalty: bool, accumulation: int) -> nn.Module:
    """The model after one step of SGD whose loss was computed in a way."""
    model: Any = make_tiny().double().train()
    way.around(model)
    regularizer = MHERegularizer(model, config_of("tiny"))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    rows = tiny_data(12)
    features = torch.stack([row["features"] for row in rows]).double().requires_grad_()  # for the reentrant way
    labels = torch.tensor([row["labels"] for row in rows])
    parts = zip(features.chunk(accumulation), labels.chunk(accumulation), strict=True)
    for number, (some, theirs) in enumerate(parts, start=1):

        def compute(inputs: Tensor, theirs: Tensor = theirs, last: bool = number == accumulation) -> Tensor:
            loss = model(inputs, theirs).loss / accumulation
            return regularizer(loss, sync=last) if penalty else loss

        with way.saving():
            way.loss(compute, some).backward()
    optimizer.step()
    assert regularizer.step == penalty
    return model


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_has_the_penalty_once(way: str, accumulation: int) -> None:
    """A forward pass that runs again would bring a second penalty, or count a second step."""
    plain, regularized = (end_of(WAYS[way], penalty, accumulation) for penalty in (False, True))
    found = {
        name.replace("_checkpoint_wrapped_module.", ""): value
        for name, value in difference(plain, regularized).items()
    }
    assert relative_difference(found, by_formula("tiny")) < 1e-9


def adapted() -> nn.Module:
    import peft

    from tests.training.faces import make_llama

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return peft.get_peft_model(make_llama(), config)


SAVED: dict[str, tuple[Callable[[], nn.Module], MHEConfig]] = {
    "layers": (lambda: make_tiny().double(), config_of("tiny")),
    "parts of a fused layer": (lambda: ALL_CASES["gpt2"].make().double(), config_of("gpt2")),
    "adapters": (adapted, MHEConfig()),
    "a stack": (lambda: nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))).double(), MHEConfig(across=["layers"])),
    "another objective": (lambda: make_tiny().double(), config_of("tiny", objective="srip")),
    "in part": (lambda: make_tiny().double(), config_of("tiny", budget=0.5)),
}


@pytest.mark.filterwarnings("ignore:MHEConfig")
@pytest.mark.parametrize("name", SAVED)
def test_no_weight_goes_through_the_hooks(name: str) -> None:
    """Every step would copy all weights to the host and back, which are in memory anyway."""
    make, config = SAVED[name]
    model = make().train()
    regularizer = MHERegularizer(model, config, step_operations=1e9 if config.budget else None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    seen: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch.stack([parameter.double().square().sum() for parameter in trained]).sum()
        assert len(seen) >= len(trained)  # the task's are seen
        seen.clear()
        total = regularizer(loss)
        total.backward()
    assert total.item() > loss.item()
    assert not any(len(shape) > 1 for shape in seen), seen


@pytest.mark.parametrize("offloaded", [False, True])
def test_the_penalty_is_not_walked_again(offloaded: bool) -> None:
    """Checkpointing would pay for every pair twice, though no memory is saved by it."""
    model: Any = make_tiny().double().train()
    regularizer = MHERegularizer(model, config_of("tiny"))
    rows = tiny_data(8)
    features = torch.stack([row["features"] for row in rows]).double()
    labels = torch.tensor([row["labels"] for row in rows])
    reached: list[str] = []

    def compute(inputs: Tensor) -> Tensor:
        reached.append("model")
        loss = model(inputs, labels).loss
        reached.append("penalty")
        return regularizer(0 * loss)

    with save_on_cpu() if offloaded else nullcontext():
        total: Any = checkpoint(compute, features, use_reentrant=False)
        total.backward()
    assert reached.count("model") == 2
    assert reached.count("penalty") == 1
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert relative_difference(found, starting_gradient("tiny", HIDDEN, OUTPUT)) < 1e-9


def test_a_weight_changed_before_the_backward_pass_is_noticed() -> None:
    """Without hooks of anybody, the penalty would have the gradient of weights that are no longer there."""
    model = make_tiny().double().train()
    penalty = MHERegularizer(model, config_of("tiny")).penalty()
    with torch.no_grad():
        model.body.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()

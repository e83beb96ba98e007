"""A step of several backward passes in a loop: the optimizer gets the penalty once, or it is refused or said."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_mhe import MHEConfig, MHEError, MHERegularizer
from tests.engines.launch import run_in_processes
from tests.training import passes_worker
from tests.training.cases import CONFIG, HIDDEN, LEARNING_RATE, OUTPUT, make_tiny, relative_difference
from tests.training.loops import forget_accelerate
from tests.training.passes import CASE, ONCE, difference, perturb, perturbed_penalty, step_by


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


class Loop:
    """One optimizer step of a hand-written loop, with the penalty and without."""

    def __init__(self, config: MHEConfig = CONFIG) -> None:
        rows = CASE.data(16)
        self.features = torch.stack([row["features"] for row in rows]).double()
        self.labels = torch.tensor([row["labels"] for row in rows])
        self.config = config

    def contribution(self, step: Callable[[Any, Any, Any, Any], None]) -> dict[str, Tensor]:
        """What the penalty adds in a step, which gets the model, the optimizer, the task's loss and the hook."""
        ends = []
        for penalty in (False, True):
            model = CASE.make().double().train()
            optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
            self.regularizer = MHERegularizer(model, self.config)
            hook = self.regularizer if penalty else (lambda loss: loss)
            step(model, optimizer, lambda model=model: model(self.features, self.labels).loss, hook)
            ends.append(model)
        return difference(*ends)


def sharp_loop(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    hook(loss()).backward()
    perturb(model, 1.0)
    optimizer.zero_grad()
    hook(loss()).backward()
    perturb(model, -1.0)
    optimizer.step()


def sharp_loop_cleared_late(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    for sign in (1.0, -1.0):
        value = hook(loss())
        optimizer.zero_grad()  # between the call and the pass
        value.backward()
        perturb(model, sign)
    optimizer.step()


def sharp_loop_by_grad(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    torch.autograd.grad(hook(loss()), list(model.parameters()))
    perturb(model, 1.0)
    hook(loss()).backward()
    perturb(model, -1.0)
    optimizer.step()


@pytest.mark.parametrize("step", [sharp_loop, sharp_loop_cleared_late, sharp_loop_by_grad])
def test_sharpness_aware_loop(step: Any) -> None:
    """By hand, the schedule would count both passes, or the penalty be in the one that is thrown away."""
    loop = Loop()
    assert relative_difference(loop.contribution(step), perturbed_penalty()) < 1e-9
    assert loop.regularizer.step == 1


def added_up(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    hook(loss()).backward()
    hook(0.5 * loss()).backward()
    optimizer.step()


def all_before_one_pass(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    (hook(loss()) + hook(0.5 * loss())).backward()
    optimizer.step()


def the_same_loss_twice(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    value = hook(loss())
    value.backward(retain_graph=True)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def one_thrown_away(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    hook(loss())  # a batch that is left out, for its loss is NaN say
    hook(loss()).backward()
    optimizer.step()


def norm_looked_at(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    value = hook(loss())
    torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    value.backward()
    optimizer.step()


def replaced_by_the_same(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    hook(loss()).backward()
    for parameter in model.parameters():
        parameter.grad = parameter.grad.clone()  # as those do who change gradients before a step
    optimizer.step()


def one_task_of_two(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    hook(loss()).backward()
    first = [parameter.grad for parameter in model.parameters()]
    optimizer.zero_grad()
    loss().backward()
    for parameter, gradient in zip(model.parameters(), first, strict=True):
        parameter.grad = parameter.grad + gradient
    optimizer.step()


LOOPS = [
    added_up, all_before_one_pass, the_same_loss_twice, one_thrown_away, norm_looked_at, replaced_by_the_same,
    one_task_of_two,
]  # fmt: skip


@pytest.mark.quick_cases(2)
@pytest.mark.filterwarnings("ignore:a second penalty")
@pytest.mark.parametrize("step", LOOPS)
def test_whatever_the_passes_are_it_counts_once(step: Any) -> None:
    """Lambda would be another one for each way to write a step."""
    loop = Loop()
    assert relative_difference(loop.contribution(step), ONCE) < 1e-9
    assert loop.regularizer.step == 1
    record = loop.regularizer.logs()
    assert record["mhe_loss"] == pytest.approx(MHERegularizer(CASE.make().double(), CONFIG).penalty().item())


def micro_batches(loss: Any, hook: Any) -> None:
    for last in (False, True):
        total = loss() / 2
        (hook(total, sync=last) if isinstance(hook, MHERegularizer) else total).backward()


def sharp_loop_in_micro_batches(set_to_none: bool) -> Callable[[Any, Any, Any, Any], None]:
    def step(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
        for sign in (1.0, -1.0):
            optimizer.zero_grad(set_to_none=set_to_none)
            micro_batches(loss, hook)
            perturb(model, sign)
        optimizer.step()

    return step


@pytest.mark.parametrize("set_to_none", [True, False])
def test_micro_batches_after_gradients_were_cleared(set_to_none: bool) -> None:
    """The micro-batches without a penalty would be taken for gradients that hold it."""
    loop = Loop()
    assert relative_difference(loop.contribution(sharp_loop_in_micro_batches(set_to_none)), perturbed_penalty()) < 1e-9
    assert loop.regularizer.step == 1


@pytest.mark.parametrize("set_to_none", [True, False])
def test_micro_batches_after_a_skipped_step(set_to_none: bool) -> None:
    """A gradient scaler's first overflow would end the training, or the penalty be left out of the next step."""
    ends = []
    for penalty in (False, True):
        model = CASE.make().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-120)
        regularizer, loop = MHERegularizer(model, CONFIG), Loop()
        for _ in range(2):
            for last in (False, True):
                loss = 8 * model(loop.features, loop.labels).loss / 2
                scaler.scale(regularizer(loss, sync=last) if penalty else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=set_to_none)
        assert scaler.get_scale() == 2.0**6  # one step was skipped, and one was taken
        assert not penalty or regularizer.step == 2
        ends.append(model)
    assert relative_difference(difference(*ends), ONCE) < 1e-4


@pytest.mark.filterwarnings("ignore:the gradient of MHE")
@pytest.mark.parametrize("penalized", [(True, False), (True, True)])
def test_gradients_that_are_zero_are_not_taken_for_cleared(penalized: tuple[bool, ...]) -> None:
    """The first step of an adapter whose second factor starts at zero would be refused, or have the penalty twice."""

    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.first = nn.Linear(6, 4, bias=False)
            self.second = nn.Linear(4, 5, bias=False)
            with torch.no_grad():
                self.first.weight.copy_(torch.randn(4, 6, generator=generator))
                self.second.weight.zero_()

    ends = []
    for penalty in (False, True):
        model = LowRank().double().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        # The layer whose task gradient is zero, with a penalty so small that its gradient is zero too.
        regularizer = MHERegularizer(model, MHEConfig(hidden_weight=1e-320, include="first"))
        features = torch.ones(3, 6, dtype=torch.float64)
        for hooked in penalized:
            task = model.second(model.first(features)).sum()
            (regularizer(task) if penalty and hooked else task).backward()
            parameters = list(model.parameters())
            torch.autograd.grad(model.second(model.first(features)).sum(), parameters)  # somebody looks
        optimizer.step()
        ends.append(model)
    assert not any(value.any() for key, value in difference(*ends).items())
    assert regularizer.step == 1


def put_together(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    gradients = []
    for _ in range(2):
        optimizer.zero_grad()
        hook(loss()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for parameter, *both in zip(model.parameters(), *gradients, strict=True):
        parameter.grad = both[0] + both[1]
    optimizer.step()


def never_backward(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    hook(loss())
    loss().backward()
    optimizer.step()


def taken_out_twice(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    parameters = list(model.parameters())
    both = [torch.autograd.grad(hook(loss()), parameters) for _ in range(2)]
    for parameter, first, second in zip(parameters, *both, strict=True):
        parameter.grad = first + second
    optimizer.step()


def last_pass_without(model: Any, optimizer: Any, loss: Any, hook: Any) -> None:
    hook(loss()).backward()
    perturb(model, 1.0)
    optimizer.zero_grad(set_to_none=False)
    loss().backward()
    optimizer.step()


@pytest.mark.slow
def test_what_cannot_be_told_is_refused_or_said() -> None:
    """Gradients put together by hand would have lambda times the number of tasks, or none, without a word."""
    with pytest.raises(MHEError, match="put together from 2 backward passes"):
        Loop().contribution(put_together)
    with pytest.raises(MHEError, match="would not reach this optimizer step"):
        Loop().contribution(last_pass_without)
    with pytest.warns(UserWarning, match="had no backward pass before it"):
        Loop().contribution(never_backward)
    with pytest.warns(UserWarning, match="more than once within one optimizer step"):
        Loop().contribution(taken_out_twice)


def test_two_networks_that_step_in_turn() -> None:
    """Of two networks with an optimizer each, one would have no penalty, or both twice."""
    ends = []
    for penalty in (False, True):
        one, other = make_tiny(0).double(), make_tiny(1).double()
        both = nn.ModuleList([one, other]).train()
        regularizer = MHERegularizer(both, MHEConfig(hidden_weight=HIDDEN, output_weight=OUTPUT, output="*classifier"))
        optimizers = [torch.optim.SGD(model.parameters(), lr=LEARNING_RATE) for model in (one, other)]
        loop = Loop()
        for optimizer in optimizers:
            both.zero_grad()
            loss = sum(model(loop.features, loop.labels).loss for model in both)
            (regularizer(loss) if penalty else loss).backward()
            optimizer.step()
        assert not penalty or regularizer.step == 2
        ends.append(both)
    found = difference(*ends)
    for number, model in enumerate((make_tiny(0), make_tiny(1))):
        expected = step_by(CASE.penalty_gradient(model.double(), HIDDEN, OUTPUT))
        own = {key.removeprefix(f"{number}."): value for key, value in found.items() if key.startswith(f"{number}.")}
        assert relative_difference(own, expected) < 1e-9


def test_a_plain_loop_says_nothing_and_leaves_nothing() -> None:
    """Every loop would be warned, slowed down by hooks that add up, or no longer be sent to another process."""
    model = make_tiny().train()
    regularizer = MHERegularizer(model, CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loop = Loop()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the gradient of MHE's penalty")
        for _ in range(4):
            regularizer(model(loop.features, loop.labels).loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            for parameter in model.parameters():
                assert not parameter._backward_hooks
                assert not parameter._post_accumulate_grad_hooks
    assert regularizer.step == 4
    regularizer(model(loop.features, loop.labels).loss).backward()
    again = pickle.loads(pickle.dumps(regularizer))
    assert again.step == 5
    again(torch.zeros((), requires_grad=True)).backward()
    assert again.step == 6


@dataclasses.dataclass(frozen=True)
class Engine:
    name: str


@pytest.mark.story
@pytest.mark.parametrize("flow", passes_worker.FLOWS)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_put_it_in_once(engine: str, flow: str) -> None:
    """The ranks would decide otherwise from their own part of a gradient, and wait for each other, or lose it."""
    engines = [Engine("ddp"), Engine("fsdp2")]
    results = run_in_processes(engines, 2, worker="tests.training.passes_worker", timeout=500)
    at = CASE.make().double()
    if flow != "added up":
        passes_worker.scale(at, passes_worker.LARGER)
    expected = step_by(CASE.penalty_gradient(at, HIDDEN, OUTPUT))
    assert relative_difference(results[f"{engine} {flow}"], expected) < 1e-9


@pytest.mark.engines
def test_two_passes_before_one_step_of_deepspeed_are_refused() -> None:
    """Whether its gradients were cleared in between cannot be seen: lambda would be doubled, or nothing."""
    pytest.importorskip("deepspeed")
    results = run_in_processes([Engine("deepspeed")], 2, worker="tests.training.passes_worker", timeout=500)
    assert bool(results["deepspeed"]["refused"])

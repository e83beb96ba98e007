"""What counts, counts optimizer steps: not calls of the hook, not evaluations of a closure, not perturbations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hf_mhe import MHEConfig, MHERegularizer
from tests.training.cases import CASES, make_tiny, relative_difference
from tests.training.loops import forget_accelerate

STEPS = 3
ROWS = CASES["tiny"].data(16)
FEATURES = torch.stack([row["features"] for row in ROWS]).double()
LABELS = torch.tensor([row["labels"] for row in ROWS])


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


class Loop:
    """A loop that notes, at each call of the hook, which share of the penalty it got."""

    def __init__(self, config: MHEConfig, **keywords: Any) -> None:
        self.model = make_tiny().double().train()
        self.regularizer = MHERegularizer(self.model, config, **keywords)
        self.shares: list[float] = []

    def loss(self, factor: float = 1.0) -> Any:
        task = factor * self.model(FEATURES, LABELS).loss
        total = self.regularizer(task)
        with torch.no_grad():
            whole = self.regularizer.penalty()
        self.shares.append(round(float((total - task) / whole), 6))
        return total

    def backward(self, optimizer: Any = None) -> Any:
        if optimizer is not None:
            optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss


class TwoPasses(torch.optim.Optimizer):
    """Sharpness-aware minimization around another optimizer, as its authors' implementations have it."""

    def __init__(self, parameters: Any, through_data: bool) -> None:
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)
        self.through_data = through_data

    def move(self, by: float) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                with torch.no_grad():
                    (parameter.data if self.through_data else parameter).add_(by * torch.ones_like(parameter))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.move(0.01)
        with torch.enable_grad():
            self.zero_grad()
            closure()
        self.move(-0.01)
        self.base.step()


def line_search(loop: Loop, **keywords: Any) -> None:
    optimizer = torch.optim.LBFGS(loop.model.parameters(), lr=0.1, max_iter=5, **keywords)
    for _ in range(STEPS):
        optimizer.step(lambda: loop.backward(optimizer))


def strong_wolfe(loop: Loop) -> None:
    line_search(loop, line_search_fn="strong_wolfe")


def closure_after_a_pass(loop: Loop) -> None:
    optimizer = TwoPasses(loop.model.parameters(), through_data=False)
    for _ in range(STEPS):
        loop.backward(optimizer)
        optimizer.step(loop.backward)


def perturbed(loop: Loop, through_data: bool = False) -> None:
    optimizer = TwoPasses(loop.model.parameters(), through_data)
    for _ in range(STEPS):
        loop.backward(optimizer)
        optimizer.move(0.01)
        loop.backward(optimizer)
        optimizer.move(-0.01)
        optimizer.base.step()


def perturbed_through_data(loop: Loop) -> None:
    perturbed(loop, through_data=True)


def two_optimizers_after_one_pass(loop: Loop) -> None:
    parameters = list(loop.model.parameters())
    optimizers = [torch.optim.SGD(parameters[:2], lr=0.1), torch.optim.AdamW(parameters[2:], lr=0.1, foreach=True)]
    for _ in range(STEPS):
        loop.model.zero_grad()
        loop.backward()
        for optimizer in optimizers:
            optimizer.step()


def thrown_away(loop: Loop) -> None:
    optimizer = torch.optim.AdamW(loop.model.parameters(), lr=0.1, fused=True)
    for _ in range(STEPS):
        loop.loss()
        loop.loss()
        loop.backward(optimizer)
        optimizer.step()


def added_up(loop: Loop) -> None:
    optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(3):
            loop.loss(1 / 3).backward()
        optimizer.step()


def one_call(loop: Loop) -> None:
    optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    for _ in range(STEPS):
        loop.backward(optimizer)
        optimizer.step()


def another_models_optimizer(loop: Loop) -> None:
    other = make_tiny(1).double()
    theirs, ours = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (other, loop.model))
    for _ in range(STEPS):
        for _ in range(2):
            loop.backward(ours)
            other(FEATURES, LABELS).loss.backward()
            theirs.step()
        ours.step()


def no_optimizer(loop: Loop) -> None:
    for _ in range(STEPS):
        loop.model.zero_grad()
        loop.backward()
        with torch.no_grad():
            for parameter in loop.model.parameters():
                parameter -= 0.1 * parameter.grad


LOOPS: list[Callable[[Loop], None]] = [
    one_call, line_search, strong_wolfe, closure_after_a_pass, perturbed, perturbed_through_data,
    two_optimizers_after_one_pass, thrown_away, added_up, another_models_optimizer, no_optimizer,
]  # fmt: skip


def without_repetition(values: list[float]) -> list[float]:
    return [value for place, value in enumerate(values) if not place or value != values[place - 1]]


@pytest.mark.quick_cases(2)
@pytest.mark.filterwarnings("ignore:a second penalty", "ignore:an optimizer steps", "ignore:the gradient of MHE")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_schedule_follows_the_optimizer(loop: Callable[[Loop], None]) -> None:
    """Lambda would decay within the first line search, twice as fast, or at each batch that is thrown away."""
    config = MHEConfig(hidden_weight=0.01, output_weight=0.01, schedule="linear")
    run = Loop(config, total_steps=STEPS)
    loop(run)
    assert run.regularizer.step == STEPS
    assert run.regularizer.state_dict() == {"step": STEPS}
    assert without_repetition(run.shares) == [1.0, round(2 / 3, 6), round(1 / 3, 6)]


@pytest.mark.quick_cases(2)
@pytest.mark.filterwarnings("ignore:a second penalty", "ignore:an optimizer steps", "ignore:the gradient of MHE")
@pytest.mark.parametrize("loop", LOOPS)
def test_every_second_step_is_an_optimizers(loop: Callable[[Loop], None]) -> None:
    """Of the passes of one step, the one would have the penalty twice and the next none."""
    run = Loop(MHEConfig(hidden_weight=0.01, output_weight=0.01, every_n_steps=2))
    loop(run)
    assert without_repetition(run.shares) == [2.0, 0.0, 2.0]
    assert run.regularizer.step == STEPS


@pytest.mark.filterwarnings("ignore:the gradient of MHE")
@pytest.mark.parametrize("loop", [line_search, perturbed])
def test_a_budget_draws_once_a_step(loop: Callable[[Loop], None]) -> None:
    """A line search would minimize another function at each evaluation."""
    config = MHEConfig(hidden_weight=0.01, output_weight=0.01, budget=0.1)
    run = Loop(config, step_operations=3000.0, seed=1)
    assert run.regularizer.budget is not None
    seen: list[tuple[int, str]] = []
    draw = run.regularizer.budget.draw

    def noted(terms: Any, workload: Any, step: int) -> Any:
        drawn = draw(terms, workload, step)
        seen.append((step, str(drawn)))
        return drawn

    run.regularizer.budget.draw = noted  # type: ignore[method-assign]
    loop(run)
    assert len(seen) > STEPS
    assert {step for step, _ in seen} == set(range(STEPS))
    assert len(set(seen)) == STEPS


@pytest.mark.filterwarnings("ignore:the gradient of MHE")
def test_a_record_has_one_value_a_step() -> None:
    """The record would be a mean over the line search, in which the bad points count as the good."""
    run = Loop(MHEConfig(hidden_weight=0.01, output_weight=0.01))
    optimizer = torch.optim.LBFGS(run.model.parameters(), lr=0.1, max_iter=5)
    last = []
    for _ in range(STEPS):
        evaluated: list[float] = []

        def closure(evaluated: list[float] = evaluated) -> Any:
            evaluated.append(run.regularizer.penalty().item())
            return run.backward(optimizer)

        optimizer.step(closure)
        assert len(evaluated) == 5
        last.append(evaluated[-1])
    assert run.regularizer.logs()["mhe_loss"] == pytest.approx(sum(last) / STEPS, rel=1e-9)


def test_skipped_steps_count_and_thrown_away_ones_do_not() -> None:
    """A scaler's skipped step is one for Trainer and for accelerate's counters: the schedules would part."""
    run = Loop(MHEConfig(hidden_weight=0.01, schedule="linear"), total_steps=10)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    run.model.float()
    for _ in range(4):
        run.regularizer(run.model(FEATURES, LABELS).loss)  # thrown away
        optimizer.zero_grad()
        scaler.scale(run.loss(1e3)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() < 2.0**127
    assert run.regularizer.step == 4


def test_a_resumed_loop_goes_on_with_a_step() -> None:
    """The first call after loading would be taken for another pass of the step that was saved."""
    run = Loop(MHEConfig(hidden_weight=0.01, schedule="linear"), total_steps=10)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    run.backward(optimizer)
    run.regularizer.load_state_dict({"step": 5})
    run.backward(optimizer)
    assert run.shares == [1.0, 0.5]
    run.backward(optimizer)
    assert run.regularizer.step == 6
    optimizer.step()
    run.backward(optimizer)
    assert run.regularizer.step == 7


def test_evaluation_and_frozen_evaluations_are_no_steps() -> None:
    """A validation in the middle of a step would move the schedule on."""
    run = Loop(MHEConfig(hidden_weight=0.01, warmup_steps=4))
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    for _ in range(2):
        run.backward(optimizer)
        with torch.no_grad():
            run.regularizer(torch.zeros(()))
        run.regularizer(torch.zeros(()), sync=False)
        optimizer.step()
    assert run.regularizer.step == 2


def test_two_regularizers_count_for_themselves() -> None:
    """Of two networks that are trained in turn, each schedule would count the steps of both."""
    models = [make_tiny(seed).double().train() for seed in (0, 1)]
    regularizers = [MHERegularizer(model, MHEConfig(hidden_weight=0.01, warmup_steps=9)) for model in models]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in models]
    for turn in (0, 1, 1, 0, 1):
        optimizers[turn].zero_grad()
        regularizers[turn](models[turn](FEATURES, LABELS).loss).backward()
        optimizers[turn].step()
    assert [regularizer.step for regularizer in regularizers] == [2, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the gradient of MHE")
def test_a_compiled_optimizer_step_is_seen() -> None:
    """The schedule would stand still for who compiles his optimizer, or the compiler would fail."""
    run = Loop(MHEConfig(hidden_weight=0.01, warmup_steps=9))
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=0.01)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        run.backward(optimizer)
        run.backward(optimizer)
        step()
    assert run.regularizer.step == 3


def test_parameters_that_come_to_the_optimizer_later() -> None:
    """Steps of an optimizer that had none of the layers at first would not be counted."""
    model: Any = make_tiny().double().train()
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    regularizer = MHERegularizer(model, MHEConfig(warmup_steps=9))
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    for step in range(4):
        if step == 2:
            model.middle.requires_grad_(True)
            optimizer.add_param_group({"params": list(model.middle.parameters())})
        optimizer.zero_grad()
        regularizer(model(FEATURES, LABELS).loss).backward()
        optimizer.step()
    assert regularizer.step == 4


def test_the_objective_is_the_same_within_a_line_search() -> None:
    """With lambda falling between two evaluations, a line search finds descent where there is none: by hand, LBFGS."""
    ends = []
    for by_hand in (False, True):
        model = make_tiny().double().train()
        regularizer = MHERegularizer(model, MHEConfig(schedule="linear"), total_steps=4)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=4, line_search_fn="strong_wolfe")
        for step in range(2):

            def total(task: Any, step: int = step, by_hand: bool = by_hand, hook: Any = regularizer) -> Any:
                return task + (1 - step / 4) * hook.penalty() if by_hand else hook(task)

            def closure(total: Any = total, model: Any = model, optimizer: Any = optimizer) -> Any:
                optimizer.zero_grad()
                loss = total(model(FEATURES, LABELS).loss)
                loss.backward()
                return loss

            optimizer.step(closure)
        ends.append({key: value.detach() for key, value in model.named_parameters()})
    assert relative_difference(*ends) < 1e-12

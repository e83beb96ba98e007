"""A budget: what it costs, that nothing is biased by it, and that every rank and every resumption draws alike."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from hf_mhe import MHEConfig, MHERegularizer, MHETrainer
from hf_mhe.energy import sampled_energy
from hf_mhe.energy.estimators.sampled import sampled_operations
from hf_mhe.errors import MHEError
from hf_mhe.training.budget.allotment import Allotment, allot
from hf_mhe.training.budget.operations import ForwardOperations
from hf_mhe.training.engines.plan import GroupShape, Workload, operations, operations_by_rows
from hf_mhe.training.mean_energy import mean_energy
from tests.engines import budget_worker
from tests.training.cases import FEATURES, make_tiny

SHAPES = [(24, 6), (24, 6), (24, 6), (40, 6), (64, 8)]
EXACT = sum(3 * n * n * d for n, d in SHAPES)


def allotted(shapes: Sequence[GroupShape], allowance: float, ranks: int) -> Allotment:
    """Of groups with one and the same weight in the penalty."""
    return allot(Workload(tuple(shapes), ranks), (1.0,) * len(shapes), allowance)


def make_model(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.ModuleList:
    torch.manual_seed(seed)
    return nn.ModuleList(nn.Linear(d, n, bias=False) for n, d in SHAPES).to(dtype)


def gradient(model: nn.Module, penalty: Tensor | None) -> Tensor:
    parameters = list(model.parameters())
    if penalty is None:
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    found = torch.autograd.grad(penalty, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


# Of the exact operations: groups in turn; the largest sampled; the largest two sampled, and few drawn at a time.
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.75, 0.4, 0.12])
def test_value_and_gradient_are_unbiased(share: float) -> None:
    """A biased estimate trains another objective: means over draws against the exact one, within 4 standard errors."""
    model = make_model()
    config = {"hidden_weight": 0.7, "output_weight": 0.3, "output": ["3"]}
    exact = MHERegularizer(model, MHEConfig(**config)).penalty()
    directions = torch.randn(20, sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    expected = torch.cat([exact.detach()[None], directions @ gradient(model, exact)])
    draws = []
    for seed in range(500):
        budget = MHEConfig(**config, budget=0.01)
        regularizer = MHERegularizer(model, budget, step_operations=1.5 * share * EXACT / 0.01, seed=seed)
        regularizer._ratio.watch = lambda penalty, *_, **__: penalty  # type: ignore[method-assign]
        penalty = regularizer.advance()
        value = torch.zeros((), dtype=torch.float64) if penalty is None else penalty.detach()
        draws.append(torch.cat([value[None], directions @ gradient(model, penalty)]))
    drawn = torch.stack(draws)
    error = drawn.std(0) / math.sqrt(len(draws))
    assert drawn[:, 0].std() > 0
    assert ((drawn.mean(0) - expected).abs() < 4 * error).all()


def test_what_fits_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """A budget that is large enough may not add noise."""
    model = make_model()
    exact = MHERegularizer(model, MHEConfig())
    budgeted = MHERegularizer(model, MHEConfig(budget=0.5), step_operations=4 * EXACT)
    for _ in range(3):
        torch.testing.assert_close(budgeted.advance(), exact.advance(), rtol=0, atol=0)
    assert capsys.readouterr().err.count("the exact penalty fits") == 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.1, 0.03])
def test_the_busiest_rank_keeps_to_the_allowance(share: float, ranks: int) -> None:
    """The step is as slow as its slowest rank: that one's operations, averaged over the steps, are what is limited."""
    groups = [GroupShape(n, d) for n, d in SHAPES]
    allowance = share * EXACT
    made = allotted(groups, allowance, ranks)
    total = 0.0
    for step in range(400):
        load = [0.0] * ranks
        for cost in sorted((made.operations[index] for index in made.draw(step, seed=1)), reverse=True):
            load[load.index(min(load))] += cost
        total += max(load)
    assert 0 < total / 400 < allowance
    assert all(cost <= allowance for cost in made.operations)


def test_a_weight_that_must_be_whole_is_not_sampled() -> None:
    """An engine that never has a weight in one place cannot walk a sample of its neurons."""
    groups = [GroupShape(n, d, together=n == 64) for n, d in SHAPES]
    made = allotted(groups, 0.1 * EXACT, 1)
    assert made.rows[-1] is None
    assert made.rows[-2] is not None


@pytest.mark.parametrize(("n", "d", "rows"), [(96, 64, 8), (96, 8, 24), (640, 32, 100)])
def test_operations_of_a_sample_are_counted_right(n: int, d: int, rows: int) -> None:
    """The budget is only as good as the count: torch's own counter sees the products of the sampled walk."""

    def fused(_added: Any, a: tuple[int, ...], b: tuple[int, ...], **_: Any) -> int:
        return 2 * math.prod(a) * b[-1]

    in_place = {torch.ops.aten.addmm_: fused, torch.ops.aten.baddbmm_: fused}  # which torch itself does not count
    weight = torch.randn(n, d, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        sampled_energy(weight, rows=rows)
    # The square of the sample is walked whole where it is small, which takes 4 m^2 d operations in place of 3 m^2 d.
    counted = sampled_operations(rows, n, d)
    assert counted <= counter.get_total_flops() <= counted + rows * rows * d + 4 * d * (n + rows)


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32, bias=False), nn.Linear(32, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))).square().mean()


def test_the_step_is_counted_once_with_all_its_micro_batches() -> None:
    """Counted from the wrong passes, a budget of 2 % is not 2 %."""
    model = Steps()
    regularizer = MHERegularizer(model, MHEConfig(budget=0.5))
    model.eval()
    model(torch.randn(1000, 8))
    model.train()
    with torch.no_grad():
        model(torch.randn(1000, 8))
    with FlopCounterMode(display=False) as counter:
        for micro in range(3):
            loss = model(torch.randn(16, 8))
            regularizer(loss, sync=micro == 2) if micro < 2 else None
            loss.backward()
    forward = 3 * 2 * 16 * (8 * 32 + 32 * 4)
    regularizer(model(torch.randn(0, 8)), sync=True)
    budget = regularizer.budget
    assert budget is not None
    assert budget.step_operations == 3 * forward
    # Backward has no product for the gradient of the inputs of the first layer.
    assert counter.get_total_flops() == 3 * forward - 3 * 2 * 16 * 8 * 32
    model(torch.randn(1000, 8))
    regularizer(model(torch.randn(1000, 8)))
    assert budget.step_operations == 3 * forward


def test_frozen_parameters_have_no_backward_products_of_their_own() -> None:
    model = Steps()
    model.first.requires_grad_(False)
    counted = ForwardOperations(model)
    model(torch.randn(16, 8))
    trained = 128 / (128 + 256)
    assert counted.stop() == 2 * 16 * 384 * (2 + trained)


def test_an_exception_in_the_forward_pass_leaves_nothing_behind() -> None:
    model = Steps()
    counted = ForwardOperations(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(16, 9))
    model(torch.randn(16, 8))
    assert counted.stop() == 3 * 2 * 16 * 384
    with FlopCounterMode(display=False) as counter:
        torch.randn(2, 2) @ torch.randn(2, 2)
    assert counter.get_total_flops() == 16


def test_draws_depend_on_seed_and_step_alone() -> None:
    """A rank or a resumed training that drew otherwise would train otherwise."""
    groups = [GroupShape(n, d) for n, d in SHAPES]

    def drawn(seed: int) -> list[Any]:
        made = allotted(groups, 0.1 * EXACT, 1)
        steps = [(step, made.draw(step, seed=seed)) for step in range(50)]
        return [(some, [made.sample(index, step, seed) for index in some]) for step, some in steps]

    first = drawn(3)
    assert any(sample is not None for _, samples in first for sample in samples)
    torch.manual_seed(5)
    assert drawn(3) == first
    assert drawn(4) != first


@pytest.mark.slow
def test_a_hand_written_loop_resumes_to_the_bit() -> None:
    """What was counted in the first step may not be counted again from another batch."""

    def train(model: nn.Module, regularizer: MHERegularizer, steps: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for step in steps:
            torch.manual_seed(step)
            regularizer(model(torch.randn(4 + step, 8))).backward()
            optimizer.step()
            optimizer.zero_grad()

    def make() -> tuple[Steps, MHERegularizer]:
        torch.manual_seed(0)
        model = Steps()
        return model, MHERegularizer(model, MHEConfig(budget=0.3))

    whole, regularizer = make()
    train(whole, regularizer, range(8))
    half, regularizer = make()
    train(half, regularizer, range(3))
    weights, state = half.state_dict(), regularizer.state_dict()
    resumed, regularizer = make()
    resumed.load_state_dict(weights)
    regularizer.load_state_dict(state)
    train(resumed, regularizer, range(3, 8))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def tiny_trainer(folder: Path, **options: Any) -> MHETrainer:
    torch.manual_seed(0)
    data = [{"features": torch.randn(FEATURES), "labels": i % 3} for i in range(24)]
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6, learning_rate=0.1,
        report_to=[], use_cpu=True, disable_tqdm=True, save_steps=2, logging_steps=1, optim="sgd", **options,
    )  # fmt: skip
    config = MHEConfig(hidden_weight=0.1, budget=0.2)
    return MHETrainer(make_tiny(), arguments, train_dataset=data, mhe_config=config)


@pytest.mark.slow
@pytest.mark.parametrize("restore", [False, True])
def test_trainer_resumes_to_the_bit(restore: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trainer's state carries what the first step counted."""
    whole = tiny_trainer(tmp_path)
    whole.train()
    said = capsys.readouterr().err
    assert said.count("MHE budget 20 %") == 1
    budget = whole.mhe_regularizer.budget
    assert budget is not None
    assert budget.step_operations == 3 * 2 * 4 * (6 * 9 + 9 * 7 + 7 * 3)
    resumed = tiny_trainer(tmp_path, restore_callback_states_from_checkpoint=restore)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    losses = [record["mhe_loss"] for record in whole.state.log_history if "mhe_loss" in record]
    assert losses == [record["mhe_loss"] for record in resumed.state.log_history if "mhe_loss" in record]


def test_logged_energies_are_those_of_the_steps_that_computed_them() -> None:
    """Averaged over steps that did not compute it, an energy would come out too small."""
    model = make_model()
    exact = MHERegularizer(model, MHEConfig()).energies()
    regularizer = MHERegularizer(
        model, MHEConfig(budget=0.01, log_groups=True), step_operations=125 * 0.75 * EXACT, seed=1
    )
    for _ in range(20):
        regularizer.advance()
    record = regularizer.logs()
    assert set(record) > {f"mhe_energy/{name}" for name in exact}
    for name, energy in exact.items():
        assert record[f"mhe_energy/{name}"] == pytest.approx(energy, rel=1e-9)


def test_dead_neurons_take_no_part_in_a_sample() -> None:
    model = nn.ModuleList([nn.Linear(16, 128, bias=False)]).double()
    with torch.no_grad():
        model[0].weight[::2] = 0
    exact = MHERegularizer(model, MHEConfig()).penalty().item()
    drawn = []
    for seed in range(200):
        regularizer = MHERegularizer(model, MHEConfig(budget=0.1), step_operations=5 * 3 * 128**2 * 16, seed=seed)
        penalty = regularizer.advance()
        drawn.append(0.0 if penalty is None else penalty.item())
    values = torch.tensor(drawn)
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(len(drawn))


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, float("nan"), float("inf"), True, "2%"])
def test_a_budget_is_a_share(budget: Any) -> None:
    with pytest.raises(MHEError, match=r"budget must be a share .* \(0, 1\]"):
        MHEConfig(budget=budget)


def test_two_ways_to_save_work_are_one_too_many() -> None:
    with pytest.raises(MHEError, match=r"budget=0\.02 and every_n_steps=4"):
        MHEConfig(budget=0.02, every_n_steps=4)


@pytest.mark.parametrize("operations", [0, -1.0, float("nan"), float("inf"), True, "many"])
def test_operations_are_a_number(operations: Any) -> None:
    with pytest.raises(MHEError, match="step_operations must be a finite number"):
        MHERegularizer(Steps(), MHEConfig(budget=0.02), step_operations=operations)


def test_a_step_that_cannot_be_counted_is_asked_for() -> None:
    model = Steps()
    regularizer = MHERegularizer(model, MHEConfig(budget=0.02))
    with pytest.raises(MHEError, match=r"step_operations=6 \* parameters \* tokens"):
        regularizer(model.second(model.first(torch.randn(2, 8))).sum())


@pytest.mark.engines
def test_a_compiled_step_draws_as_an_eager_one_does() -> None:
    """A graph that held the draw of its first step would regularize the same groups for ever."""

    def penalties(*, compiled: bool) -> list[float]:
        torch.manual_seed(0)
        model = Steps()
        regularizer = MHERegularizer(model, MHEConfig(budget=0.02), step_operations=5e5)
        step = lambda x: regularizer(model(x)) - model(x)  # noqa: E731
        step = torch.compile(step, backend="eager") if compiled else step
        return [float(step(torch.ones(2, 8)).detach()) for _ in range(6)]

    assert len(set(penalties(compiled=False))) > 1
    assert penalties(compiled=True) == pytest.approx(penalties(compiled=False), abs=1e-5)


@pytest.mark.engines
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "deepspeed"])
def test_two_processes_draw_alike(engine: str, tmp_path: Path) -> None:
    """Ranks that drew differently, or counted a group twice, would have another gradient than the draw's own."""
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run(
        [*torchrun, "-m", "tests.engines.budget_worker", str(tmp_path / "found.pt"), engine],
        cwd=Path(__file__).parents[2], env=environment, check=True, timeout=240,
    )  # fmt: skip
    found = torch.load(tmp_path / "found.pt")[engine]
    step_operations = 3 * 2 * 5 * sum(n * d for n, d in budget_worker.SHAPES)  # 4 rows on one rank, 6 on the other
    groups = {
        "ddp": [GroupShape(n, d) for n, d in budget_worker.SHAPES],
        "fsdp2": [GroupShape(n, d, rows=-(-n // 2), size=8 * n * d) for n, d in budget_worker.SHAPES],
        "deepspeed": [GroupShape(n, d, together=True) for n, d in budget_worker.SHAPES],
    }
    allotment = allotted(groups[engine], budget_worker.SHARES[engine] * step_operations, 2)
    assert engine == "deepspeed" or any(rows is not None for rows in allotment.rows)
    assert found[-1][0] == step_operations
    model = budget_worker.make()
    layers = [layer.weight for layer in model.layers]
    counts, rtol = [], 1e-4 if engine == "deepspeed" else 1e-9
    for step in range(budget_worker.STEPS):
        drawn = allotment.draw(step, seed=7)
        counts.append(len(drawn))
        potential = budget_worker.config(engine).potential("hidden")
        terms = [
            0.7 * times * mean_energy(layers[index], potential, allotment.sample(index, step, seed=7))
            for index, times in drawn.items()
        ]
        expected = torch.autograd.grad(sum(terms, layers[0].sum() * 0), layers, materialize_grads=True)
        for actual, wanted in zip(found[step], expected, strict=True):
            torch.testing.assert_close(actual.double(), wanted, rtol=rtol, atol=1e-2 * rtol)
        if engine == "deepspeed":
            with torch.no_grad():
                for layer, wanted in zip(layers, expected, strict=True):
                    layer -= budget_worker.RATE * wanted
    assert 0 < sum(counts) < budget_worker.STEPS * len(layers)


def test_steps_without_a_penalty_are_not_counted_twice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In a warm-up the first penalty comes at the second step: the budget would be one of both steps' operations."""
    arguments = TrainingArguments(str(tmp_path), max_steps=3, report_to=[], use_cpu=True, save_strategy="no")
    config = MHEConfig(warmup_steps=2, budget=0.2)
    trainer = MHETrainer(
        make_tiny(), arguments, train_dataset=[{"features": torch.ones(FEATURES), "labels": 0}] * 24, mhe_config=config
    )
    trainer.train()
    assert trainer.mhe_regularizer.budget.step_operations == 3 * 2 * 8 * (6 * 9 + 9 * 7 + 7 * 3)
    assert capsys.readouterr().err.count("MHE budget 20 %") == 1


def test_what_fits_by_rows_is_exact() -> None:
    """A vocabulary that would be too much for one rank is sampled in vain where every rank walks its own rows."""
    layers, head = [(256, 256)] * 16, (8192, 256)
    exact = [GroupShape(n, d, rows=n // 8, size=4 * n * d) for n, d in [*layers, head]]
    allowance = 0.5 * operations(*head)
    assert allotted(exact, allowance, 8).is_exact
    whole = allotted([each._replace(rows=None) for each in exact], allowance, 8)
    assert whole.rows[-1] is not None
    part = allotted(exact, allowance / 4, 8)
    assert part.rows[-1] is not None
    assert sum(part.busiest(part.draw(step, seed=1)) for step in range(200)) / 200 < allowance / 4


def test_groups_that_all_ranks_walk_together_are_counted_by_rows() -> None:
    """Each pair is walked by the owners of both of its neurons there: up to a third more than a share of the walk."""
    made = allotted([GroupShape(64, 8, together=True)] * 3, 1e9, 4)
    assert made.busiest([0, 2]) == 2 * operations_by_rows(16, 64, 8) > 2 * operations(64, 8) / 4

"""The hook in hand-written loops: what an optimizer step does to the parameters, against the formula."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_mhe import MHEError, MHERegularizer
from tests.training.cases import (
    CASES,
    CONFIG,
    HIDDEN,
    LEARNING_RATE,
    OUTPUT,
    relative_difference,
    starting_gradient,
)
from tests.training.loops import forget_accelerate, loop


@pytest.fixture(autouse=True)
def without_accelerator() -> Iterator[None]:
    """Accelerate's state is one for the process: start and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("count", "batch", "accumulation", "step"),
    [(16, 16, 1, 0), (16, 8, 2, 0), (16, 4, 4, 0), (16, 1, 16, 0), (13, 4, 4, 0), (13, 4, 3, 1)],
    ids=["1x16", "2x8", "4x4", "16x1", "ragged batch", "last accumulation of 1 in 3"],
)
def test_accumulate_counts_the_penalty_once(name: str, count: int, batch: int, accumulation: int, step: int) -> None:
    """Lambda would depend on how the batch is split in a hand-written loop."""
    plain = loop(name, False, count, batch, accumulation, step)
    regularized = loop(name, True, count, batch, accumulation, step)
    found = {key: regularized[key] - plain[key] for key in plain}
    gradient = starting_gradient(name, HIDDEN, OUTPUT)
    assert relative_difference(found, {key: -LEARNING_RATE * value for key, value in gradient.items()}) < 1e-9


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        key: torch.zeros_like(value) if value.grad is None else value.grad for key, value in model.named_parameters()
    }


@pytest.mark.parametrize("steps", [1, 4])
def test_plain_torch_loop(steps: int) -> None:
    """Without accelerate, accumulation by hand would have no way to count the penalty once."""
    case = CASES["tiny"]
    model, plain = case.make().double(), case.make().double()
    regularizer = MHERegularizer(model, CONFIG)
    loader = DataLoader(case.data(16), batch_size=16 // steps)  # type: ignore[arg-type]
    model.train()
    plain.train()
    for i, batch in enumerate(loader):
        sync = None if steps == 1 else i + 1 == steps
        regularizer(model(**batch).loss / steps, sync=sync).backward()
        (plain(**batch).loss / steps).backward()
    found = {key: value - gradients(plain)[key] for key, value in gradients(model).items()}
    assert relative_difference(found, starting_gradient("tiny", HIDDEN, OUTPUT)) < 1e-9


@pytest.mark.slow
def test_accumulation_that_nobody_told_of_is_warned_of() -> None:
    """Lambda would be multiplied by the number of micro-batches, in a loop that looks right."""

    def train(model: Any, steps: int, accumulation: int, scaler: Any = None, **told: bool) -> list[str]:
        regularizer = MHERegularizer(model, CONFIG)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
        rows = CASES["tiny"].data(4)
        features, labels = (
            torch.stack([row["features"] for row in rows]),
            torch.tensor([row["labels"] for row in rows]),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                for _ in range(accumulation):
                    loss = regularizer(1e3 * model.train()(features, labels).loss, **told)
                    (loss if scaler is None else scaler.scale(loss)).backward()
                (optimizer.step if scaler is None else lambda: (scaler.step(optimizer), scaler.update()))()
                optimizer.zero_grad()
        return [str(each.message) for each in caught if "a second penalty" in str(each.message)]

    make = CASES["tiny"].make
    (said,) = train(make(), steps=3, accumulation=4)
    assert "sync=(i + 1) % steps == 0" in said
    assert train(make(), steps=3, accumulation=1) == []
    assert train(make(), steps=3, accumulation=4, sync=True) == []  # the loop has been asked, and says so
    overflowing = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    assert train(make(), steps=3, accumulation=1, scaler=overflowing) == []
    assert overflowing.get_scale() < 2.0**127  # steps were skipped


def test_scale_undoes_a_later_division() -> None:
    """A loop that divides the loss after the hook would train with a smaller lambda than it was told."""
    model = CASES["tiny"].make().double().train()
    loss = torch.zeros((), dtype=torch.float64)
    regularizer = MHERegularizer(model, CONFIG)
    (regularizer(loss, scale=8.0) / 8).backward()
    assert relative_difference(gradients(model), starting_gradient("tiny", HIDDEN, OUTPUT)) < 1e-9


def test_evaluation_does_not_see_the_penalty() -> None:
    """A validation loss would contain the penalty and not be comparable."""
    model = CASES["tiny"].make()
    regularizer = MHERegularizer(model, CONFIG)
    loss = torch.tensor(1.5, requires_grad=True)
    assert regularizer(loss).item() > 1.6
    with torch.no_grad():
        assert regularizer(loss) is loss
    model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert regularizer(loss) is loss
    with pytest.warns(UserWarning, match=r"TinyClassifier is in eval mode.*model\.train\(\)"):
        assert regularizer(loss) is loss  # somebody trains so, to keep dropout off, and would have no penalty
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert regularizer(loss) is loss  # once


def test_autocast_around_the_hook_changes_nothing() -> None:
    """Mixed precision would compute the energy of near-duplicates from bfloat16 cosines."""
    model = CASES["tiny"].make()
    regularizer = MHERegularizer(model, CONFIG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = regularizer(torch.zeros(()))
    assert inside.dtype == torch.float32
    assert inside.item() == regularizer(torch.zeros(())).item()


@pytest.mark.parametrize(
    ("loss", "keywords", "message"),
    [
        (torch.zeros(2), {}, r"shape \(2,\)"),
        (torch.zeros((), dtype=torch.int64), {}, "int64"),
        (1.5, {}, "float"),
        (torch.zeros(()), {"scale": 0.0}, "scale"),
        (torch.zeros(()), {"scale": float("nan")}, "scale"),
    ],
)
def test_bad_loss_is_refused(loss: Any, keywords: dict[str, float], message: str) -> None:
    """A per-device vector of losses, or a scale that removes the penalty, would be trained on without a word."""
    model = CASES["tiny"].make().train()
    with pytest.raises(MHEError, match=message):
        MHERegularizer(model, CONFIG)(loss, **keywords)

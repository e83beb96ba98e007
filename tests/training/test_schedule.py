"""Schedules of lambda: the factor at a step, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from hf_mhe import MHEConfig, MHEError
from hf_mhe.training.schedule import Schedule


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_shapes_are_those_of_the_learning_rate(decay: str, warmup: int) -> None:
    """Lambda and the learning rate would mean something else by the same word."""
    total = 11
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, total),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, total),
    }[decay]()
    ours = Schedule(decay, warmup, total_steps=total)  # type: ignore[arg-type]
    for step in range(total):
        assert ours.factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12), step
        assert ours.multiplier(step) == ours.factor(step)
        optimizer.step()
        theirs.step()
    assert ours.factor(total) == pytest.approx(1.0 if decay == "constant" else 0.0, abs=1e-12)


@pytest.mark.parametrize("every", [2, 3, 7])
@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_fewer_steps_add_up_to_the_same(decay: str, every: int) -> None:
    """A penalty computed less often would be a weaker one, or a stronger one at the end of a decay."""
    always = Schedule(decay, 4, total_steps=23)  # type: ignore[arg-type]
    seldom = Schedule(decay, 4, every, total_steps=23)  # type: ignore[arg-type]
    shares = [seldom.multiplier(step) for step in range(23)]
    assert sum(shares) == pytest.approx(sum(always.multiplier(step) for step in range(23)), rel=1e-12)
    assert [step for step in range(23) if shares[step]] == list(range(0, 23, every))
    assert [Schedule(every_n_steps=every).multiplier(step) for step in range(every + 1)] == [
        every,
        *[0] * (every - 1),
        every,
    ]


def test_a_warm_up_longer_than_the_training_is_followed() -> None:
    """A short trial run of a long recipe would divide by zero."""
    short = Schedule("linear", 100, total_steps=5)
    assert [short.factor(step) for step in range(5)] == [0.0, 0.01, 0.02, 0.03, 0.04]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "exponential"}, "schedule must be one of 'constant', 'linear', 'cosine'; got 'exponential'"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer >= 0; got -1"),
        ({"warmup_steps": 0.1}, "warmup_steps must be an integer >= 0; got 0.1"),
        ({"every_n_steps": 0}, "every_n_steps must be an integer >= 1; got 0"),
        ({"every_n_steps": True}, "every_n_steps must be an integer >= 1; got True"),
        ({"log_groups": "yes"}, "log_groups must be True or False; got 'yes'"),
    ],
)
def test_bad_schedules_are_refused(values: dict[str, Any], message: str) -> None:
    """A warm-up of a tenth of a step would switch the warm-up off, and every 0 steps would divide by zero."""
    with pytest.raises(MHEError, match=message):
        MHEConfig(**values)

"""The share of a training's time that measurements take, with a clock of the test's own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch

from hf_mhe.training.time_share import TimeShare

CPU = torch.device("cpu")


@dataclass
class Training:
    """Steps of random lengths, measured as `EnergyCallback` does: the first, the last, and what there is room for."""

    limit: float
    costs: list[float] = field(default_factory=list)
    skipped: int = 0
    longest: float = 0.0
    now: float = 100.0

    def run(self, seed: int, factor: float) -> TimeShare:
        """Measurements take up to `factor` times as long as others."""
        draw = random.Random(seed)
        cost, step, steps = draw.uniform(0.1, 10), draw.uniform(0.1, 10), draw.randint(2, 1500)
        share = TimeShare(self.limit, clock=lambda: self.now)
        for number in range(1, steps + 1):
            length = step * draw.uniform(0.2, 5)
            self.now, self.longest = self.now + length, max(self.longest, length)
            if number in (1, steps) or share.has_room():
                self.costs.append(cost * factor ** draw.choice((0, 1, draw.random())))
                with share.measurement(CPU):
                    self.now += self.costs[-1]
            else:
                self.skipped += 1
        return share


SEEDS = range(100)


@pytest.mark.parametrize("limit", [0.002, 0.01, 0.2])
@pytest.mark.parametrize(("factor", "over"), [(1.0, 0), (1.5, 0), (3.0, 1)])
def test_the_share_at_the_end(factor: float, over: int, limit: float) -> None:
    """The whole training would take longer by more than its user allowed for."""
    longer = 0
    for seed in SEEDS:
        training = Training(limit)
        share = training.run(seed, factor)
        elapsed = training.now - 100
        assert share.taken == pytest.approx(sum(training.costs) / elapsed)
        if len(training.costs) > 2:  # the first and the last come whatever they cost
            longer += 1
            assert sum(training.costs) <= limit * elapsed + over * max(training.costs) + 1e-6
    assert longer > 20


def test_the_share_is_used() -> None:
    """A limit would be kept by hardly measuring anything."""
    some = 0
    for seed in SEEDS:
        training = Training(0.001)
        training.run(seed, 3.0)
        if training.skipped:
            some += 1
            allowed = 0.001 * (training.now - 100 - training.longest)
            assert allowed - sum(training.costs) <= 3 * max(training.costs)
    assert some > 20


def test_without_a_limit_there_is_room_for_all() -> None:
    """`share_of_time=None` would leave steps out."""
    share = TimeShare(None, clock=lambda: 0.0)
    with share.measurement(CPU):
        pass
    assert share.has_room()
    assert share.taken == 0

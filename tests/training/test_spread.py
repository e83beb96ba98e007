"""The spread in the logs of a training is that of the weights, on the way that every engine computes energies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import hf_mhe
from hf_mhe.training.spread import mean_spread, spreads


def layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 7))
    with torch.no_grad():
        model[0].weight += 0.3
        model[2].weight[:20] = model[2].weight[20:40]
        nn.init.orthogonal_(model[4].weight)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_equivalent_dimension_of_the_weights(dtype: torch.dtype) -> None:
    """If this fails, a training logs another number under the name that reports lead with."""
    regularizer = hf_mhe.MHERegularizer(layers().to(dtype), {"hidden_weight": 1.0, "output_weight": 1.0})
    found = spreads(regularizer.find_engine(), regularizer.groups)
    assert len(found) == 3
    for group in regularizer.groups:
        expected = hf_mhe.equivalent_dimension(group.matrix().detach()) / group.d
        if expected > 100:  # all but orthogonal neurons: rounding is all that is left
            assert found[group.name] > 100
        else:
            assert found[group.name] == pytest.approx(expected, rel=1e-3)
    report = hf_mhe.analyze(layers().to(dtype))
    assert mean_spread(found) == pytest.approx(report.summary.mean_spread, rel=1e-3)


def test_records_have_it_first_and_then_every_ten_steps() -> None:
    """If this fails, a loop that logs at every step pays for a walk at every step, or the number is never seen."""
    model = layers()
    regularizer = hf_mhe.MHERegularizer(model, {"hidden_weight": 1.0, "log_groups": True})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    steps = []
    for step in range(24):
        regularizer(model(torch.ones(2, 48)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        record = regularizer.logs()
        if "mhe_spread" in record:
            steps.append(step)
            each = [record[f"mhe_spread/{group.name}"] for group in regularizer.groups]
            assert record["mhe_spread"] == pytest.approx(len(each) / sum(1 / spread for spread in each))
    assert steps == [0, 10, 20]


def test_the_weights_are_as_before() -> None:
    """If this fails, logging changes a training: a gradient, or a weight."""
    model = layers()
    regularizer = hf_mhe.MHERegularizer(model, {"hidden_weight": 1.0})
    before = [parameter.clone() for parameter in model.parameters()]
    spreads(regularizer.find_engine(), regularizer.groups)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_orthogonal_neurons_alone() -> None:
    """If this fails, the best layer of all stops a training's log."""
    assert mean_spread({"a": math.inf}) == math.inf
    assert mean_spread({"a": math.inf, "b": 1.0}) == 2.0

"""Steps of several backward passes: what the tests of Trainer and of hand-written loops share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.training.cases import CASES, HIDDEN, LEARNING_RATE, OUTPUT, starting_gradient

PERTURBATION = 0.05
CASE = CASES["tiny"]


def difference(plain: nn.Module, regularized: nn.Module) -> dict[str, Tensor]:
    before = dict(plain.named_parameters())
    return {key: (after - before[key]).detach() for key, after in regularized.named_parameters()}


def step_by(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: -LEARNING_RATE * value for key, value in gradient.items()}


ONCE = step_by(starting_gradient("tiny", HIDDEN, OUTPUT))


def perturb(model: nn.Module, sign: float) -> None:
    """The same for every training, so that with and without the penalty the task's gradients are the same."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(sign * PERTURBATION * torch.randn(parameter.shape, generator=generator))


def perturbed_penalty() -> dict[str, Tensor]:
    model = CASE.make().double()
    perturb(model, 1.0)
    return step_by(CASE.penalty_gradient(model, HIDDEN, OUTPUT))

"""The members of the family as their papers write them, in float64 and dense, and what a training draws for them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests import oracle
from tests.training.cases import slow_energy

OPTIONS: dict[str, dict[str, Any]] = {
    "gram_determinant": {"epsilon": 0.8, "jitter": 1e-4},
    "srip": {"iterations": 3},
    "comhe_random": {"dim": 3, "projections": 2},
    "comhe_angle_preserving": {"dim": 3, "steps": 2, "step_size": 0.3},
    "comhe_adversarial": {"dim": 3, "steps": 2, "step_size": 0.02},
}


def draw(key: str, shape: tuple[int, ...]) -> Tensor:
    """What a training draws for a group at a step: `key` is `seed/step/group`."""
    generator = torch.Generator().manual_seed(random.Random(key).getrandbits(63))
    return torch.randn(shape, generator=generator).double()


def cosines(rows: Tensor, space: str = "full") -> Tensor:
    unit = oracle.directions(rows)
    cos = unit @ unit.T
    return cos.abs() if space == "half" else cos


def off_diagonal(square: Tensor) -> Tensor:
    return square[~torch.eye(len(square), dtype=torch.bool)].view(len(square), -1)


def minimal_angle(rows: Tensor, space: str, key: str) -> Tensor:
    return -torch.arccos(off_diagonal(cosines(rows, space)).amax(1)).mean()


def separation(rows: Tensor, space: str, key: str) -> Tensor:
    return -torch.sqrt(2 - 2 * off_diagonal(cosines(rows, space)).max())


def gram_determinant(rows: Tensor, space: str, key: str, *, epsilon: float, jitter: float) -> Tensor:
    unit = oracle.directions(rows)
    points = torch.cat((unit, -unit)) if space == "half" else unit
    kernel = torch.exp(-(epsilon**2) * (points[:, None] - points[None]).square().sum(-1))
    return -torch.logdet(kernel + jitter * torch.eye(len(points), dtype=torch.float64))


def soft_orthogonality(rows: Tensor, space: str, key: str) -> Tensor:
    return (rows @ rows.T - torch.eye(len(rows), dtype=torch.float64)).square().sum()


def double_soft_orthogonality(rows: Tensor, space: str, key: str) -> Tensor:
    return soft_orthogonality(rows, space, key) + soft_orthogonality(rows.T, space, key)


def srip(rows: Tensor, space: str, key: str, *, iterations: int) -> Tensor:
    short = rows if len(rows) <= rows.shape[1] else rows.T
    excess = short @ short.T - torch.eye(len(short), dtype=torch.float64)
    vector = draw(key, (len(short),))
    for _ in range(iterations):
        image = excess @ (vector / vector.norm())
        vector = image
    return image.norm()


def coherence(rows: Tensor, space: str, key: str) -> Tensor:
    return (rows @ rows.T - torch.eye(len(rows), dtype=torch.float64)).abs().max()


def drawn_projections(key: str, count: int, dim: int, rows: Tensor) -> Tensor:
    k, d = min(dim, rows.shape[1]), rows.shape[1]
    return draw(key, (count, k, d)) / math.sqrt(k * d)


def energy(rows: Tensor, space: str) -> Tensor:
    return slow_energy(rows, space=space)


def comhe_random(rows: Tensor, space: str, key: str, *, dim: int, projections: int) -> Tensor:
    matrices = drawn_projections(key, projections, dim, rows)
    return torch.stack([energy(oracle.directions(rows) @ matrix.T, space) for matrix in matrices]).mean()


def comhe_angle_preserving(rows: Tensor, space: str, key: str, *, dim: int, steps: int, step_size: float) -> Tensor:
    def preserved(matrix: Tensor) -> Tensor:
        return -(cosines(oracle.directions(rows) @ matrix.T) - cosines(rows)).square().mean()

    return moved(rows, space, key, dim, steps, step_size, preserved)


def comhe_adversarial(rows: Tensor, space: str, key: str, *, dim: int, steps: int, step_size: float) -> Tensor:
    def raised(matrix: Tensor) -> Tensor:
        return energy(oracle.directions(rows) @ matrix.T, space)

    return moved(rows, space, key, dim, steps, step_size, raised)


def moved(
    rows: Tensor, space: str, key: str, dim: int, steps: int, step_size: float, goal: Callable[[Tensor], Tensor]
) -> Tensor:
    """The energy after a projection that went uphill, with the gradient of the way up."""
    matrix = drawn_projections(key, 1, dim, rows)[0].requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(goal(matrix), matrix, create_graph=True)
        matrix = matrix + step_size * slope
    return energy(oracle.directions(rows) @ matrix.T, space)


DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "minimal_angle": minimal_angle,
    "separation": separation,
    "gram_determinant": gram_determinant,
    "soft_orthogonality": soft_orthogonality,
    "double_soft_orthogonality": double_soft_orthogonality,
    "srip": srip,
    "coherence": coherence,
    "comhe_random": comhe_random,
    "comhe_angle_preserving": comhe_angle_preserving,
    "comhe_adversarial": comhe_adversarial,
}
OF_ENERGY = tuple(name for name in DEFINITIONS if name.startswith("comhe"))
"""Those that are the energy of projected neurons, by the default potential."""


def penalty(name: str, terms: dict[str, tuple[Tensor, float, str]], *, step: int = 0, seed: int = 0) -> Tensor:
    """`sum of weight * value` over groups by their names: (rows, weight, space)."""
    values = [
        weight * DEFINITIONS[name](rows, space, f"{seed}/{step}/{group}", **OPTIONS.get(name, {}))
        for group, (rows, weight, space) in terms.items()
    ]
    return torch.stack(values).sum()

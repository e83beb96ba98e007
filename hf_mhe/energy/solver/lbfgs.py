"""Riemannian L-BFGS on a product of unit spheres: one point of it is a matrix whose rows have length one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.energy.rows import project_

# Value at a point `(n, d)`, and its gradient there, every row tangent to the row's sphere.
Objective = Callable[[Tensor], tuple[float, Tensor]]

_ARMIJO = 1e-4
_CURVATURE = 0.9
_EVALUATIONS_PER_SEARCH = 40
_FIRST_STEP = 0.1  # radians, of the row that moves most

# Note [Rounding in the line search]
# Near the minimum the decrease that a step still brings is lost in the rounding of the value, while the slope has all
# its digits. There the sufficient decrease is judged by the slope: the approximate Wolfe condition of Hager and Zhang,
# "A new conjugate gradient method with guaranteed descent and an efficient line search", SIAM J. Optim. 16 (2005).
_VALUE_ROUNDING = 4e-15


class Minimum(NamedTuple):
    """Where the solver stopped.

    Attributes:
        point: `(n, d)` float64, unit rows.
        value: the objective there.
        decrement: what one more quasi-Newton step promises to take off the value.
        iterations: steps taken.
        converged: whether `decrement` came down to the tolerance.
    """

    point: Tensor
    value: float
    decrement: float
    iterations: int
    converged: bool


def minimize_on_spheres(
    objective: Objective, start: Tensor, *, tolerance: float, max_iterations: int, history: int
) -> Minimum:
    """Minimize a smooth function of unit rows from `start` `(n, d)`, float64, until a step promises too little.

    Limited-memory BFGS with retraction by normalisation, vector transport by projection, and a line search for the
    weak Wolfe conditions. It stops once the model's decrease, `-<gradient, direction> / 2`, is at most `tolerance`.

    Source: Absil, Mahony, Sepulchre, "Optimization Algorithms on Matrix Manifolds" (2008), sections 4.1 and 8.1;
    Huang, Gallivan, Absil, "A Broyden class of quasi-Newton methods for Riemannian optimization", SIAM J. Optim. 25
    (2015).
    """
    point = start
    value, gradient = objective(point)
    memory = _Memory(history, point)
    decrement = float("inf")
    for iteration in range(max_iterations):
        direction = memory.direction(gradient, point)
        slope = float((gradient * direction).sum())
        if memory.used:
            decrement = -0.5 * slope
        elif slope == 0:
            decrement = 0.0
        if decrement <= tolerance:
            return Minimum(point, value, decrement, iteration, True)
        step = _search(objective, point, value, slope, direction)
        if step is None:
            if not memory.used:
                return Minimum(point, value, decrement, iteration, False)
            memory.clear()  # a model that has gone wrong; the gradient itself may still lead down
            continue
        memory.learn(step, direction, gradient)
        point, value, gradient = step.point, step.value, step.gradient
    return Minimum(point, value, decrement, max_iterations, False)


class _Step(NamedTuple):
    length: float
    point: Tensor
    value: float
    gradient: Tensor


def _search(objective: Objective, point: Tensor, value: float, slope: float, direction: Tensor) -> _Step | None:
    # Bracketing and bisection, as Lewis and Overton, "Nonsmooth optimization via quasi-Newton methods", Math. Program.
    # 141 (2013): it ends for every function that is bounded below, and needs no second derivative where it stops.
    low, high, length = 0.0, float("inf"), 1.0
    for _ in range(_EVALUATIONS_PER_SEARCH):
        moved = point + length * direction
        norm = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        moved /= norm
        new_value, gradient = objective(moved)
        # The derivative of the normalised path: the gradient is tangent, so what is left of the path's own is this.
        new_slope = float((gradient * direction / norm).sum())
        falls = new_value <= value + _ARMIJO * length * slope or (
            new_value <= value + _VALUE_ROUNDING * max(1.0, abs(value)) and new_slope <= (2 * _ARMIJO - 1) * slope
        )
        if not falls:  # also where the value is infinite or NaN
            high = length
        elif new_slope < _CURVATURE * slope:
            low = length
        else:
            return _Step(length, moved, new_value, gradient)
        length = 2 * low if high == float("inf") else 0.5 * (low + high)
    return None


class _Memory:
    """The last steps and the changes of the gradient along them, all tangent at the current point."""

    def __init__(self, size: int, point: Tensor) -> None:
        self._steps = point.new_zeros((size, *point.shape))
        self._changes = torch.zeros_like(self._steps)
        self._order: list[int] = []  # slots, oldest first

    @property
    def used(self) -> bool:
        return bool(self._order)

    def clear(self) -> None:
        self._order = []

    def learn(self, step: _Step, direction: Tensor, old_gradient: Tensor) -> None:
        size = len(self._steps)
        slot = self._order.pop(0) if len(self._order) == size else len(self._order)
        self._order.append(slot)
        torch.mul(direction, step.length, out=self._steps[slot])
        self._changes[slot] = old_gradient.neg()
        in_use = len(self._order)
        project_(self._steps[:in_use], step.point)
        project_(self._changes[:in_use], step.point)
        self._changes[slot] += step.gradient

    def direction(self, gradient: Tensor, point: Tensor) -> Tensor:
        """The quasi-Newton direction at `point`: the two-loop recursion of Nocedal (1980) on tangent vectors."""
        in_use = len(self._order)
        steps, changes = self._steps[:in_use].flatten(1), self._changes[:in_use].flatten(1)
        curvature = (steps * changes).sum(1).tolist()
        if not in_use or min(curvature) <= 0:
            # Transport may have spoiled a pair's curvature; then the model is no longer sure to lead down.
            self.clear()
            longest = float(torch.linalg.vector_norm(gradient, dim=1).max())
            return gradient * (-_FIRST_STEP / longest if longest else 0.0)
        direction = gradient.flatten().clone()
        share = {}
        for slot in reversed(self._order):
            share[slot] = float(steps[slot] @ direction) / curvature[slot]
            direction.sub_(changes[slot], alpha=share[slot])
        newest = self._order[-1]
        direction.mul_(curvature[newest] / float(changes[newest] @ changes[newest]))
        for slot in self._order:
            rest = share[slot] - float(changes[slot] @ direction) / curvature[slot]
            direction.add_(steps[slot], alpha=rest)
        return project_(direction.neg_().view_as(point), point)

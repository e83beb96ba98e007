"""When λ applies and how strongly, as a pure function of the optimizer step's number.

Note [Which steps are counted]
Those of the optimizer, as `hf_mhe.training.delivery` knows them, and not calls of the regularizer: a line search and
sharpness-aware minimization need several for one step. Counted too is a step that a gradient scaler skips because a
gradient overflowed, as Trainer counts it in `global_step`: the task's gradient of that step is lost in the same way.
Where no optimizer of torch's has the parameters, each call stands for a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from hf_mhe.checks import check_integer, check_option

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """The schedule of λ over a training: a warm-up, a decay, and how often the penalty is computed.

    Args:
        decay: from the end of the warm-up to the end of the training, λ stays as it is, falls to 0 along a line, or
            along half a wave of the cosine.
        warmup_steps: optimizer steps in which λ rises from 0 to its full value along a line.
        every_n_steps: of how many optimizer steps one computes the penalty; the first of the training does.
        total_steps: optimizer steps of the whole training; `inf` for one without end, in which nothing decays.

    Raises:
        MHEError: an unknown decay, or a number that is not an integer in its range.

    Source: the shapes are those of the learning rate's schedules in transformers, `get_linear_schedule_with_warmup`
    and `get_cosine_schedule_with_warmup`.
    """

    decay: Decay = "constant"
    warmup_steps: int = 0
    every_n_steps: int = 1
    total_steps: float = math.inf

    def __post_init__(self) -> None:
        check_option("schedule", self.decay, get_args(Decay))
        check_integer("warmup_steps", self.warmup_steps, at_least=0)
        check_integer("every_n_steps", self.every_n_steps, at_least=1)
        if self.total_steps != math.inf:
            check_integer("total_steps", self.total_steps, at_least=1)

    @property
    def is_constant(self) -> bool:
        """Whether λ is the same at every step."""
        return self.decay == "constant" and self.warmup_steps == 0

    def factor(self, step: int) -> float:
        """What λ is multiplied by at an optimizer step, 0 to 1; the first step is number 0."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        if step >= self.total_steps:
            return 0.0
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return 1.0 - progress if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

    def multiplier(self, step: int) -> float:
        """What the penalty is multiplied by at an optimizer step, 0 where it is not computed.

        A step that computes it makes up for the `every_n_steps - 1` that follow: it counts as often as the factors of
        all of them add up to. With a constant λ that is `every_n_steps` times.
        """
        if step % self.every_n_steps:
            return 0.0
        return math.fsum(self.factor(step + later) for later in range(self.every_n_steps))

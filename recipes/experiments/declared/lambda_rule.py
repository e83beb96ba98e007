"""The weight of MHE by a rule, on trainings that the rule was not drawn from."""

from __future__ import annotations

from declared import _parts as parts
from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment
from harness.statistics.rule import derived

LR = [1.0, 2.0]  # times the rate of the part
RATE_AND_DECAY = {"part.recipe.weight_decay": [0.0, 0.03], "rate": LR}
DEFAULT = {**rivals.MHE_FULL, "hidden_weight": 1.0}  # the library's weight

EXPERIMENT = Experiment(
    name="lambda_rule",
    title="A weight by the ratio of the gradients",
    question="Is a weight by the ratio of the gradients at step 64 better than none, and as good as a tuned one?",
    task="weighing",
    settings={"part": {}, "penalty": None, "by_ratio": False, "ratio": None, "rate": 1.0},
    arms=[
        Arm("rule", "MHE, weight by the rule", {"penalty": rivals.MHE_FULL, "by_ratio": True, "ratio": derived()},
            RATE_AND_DECAY),
        Arm("none", "nothing", {}, RATE_AND_DECAY),
        Arm("default", "MHE, weight 1", {"penalty": DEFAULT}, RATE_AND_DECAY),
        Arm("tuned", "MHE, tuned weight", {"penalty": rivals.MHE_FULL},
            {"penalty.hidden_weight": [0.1, 10.0], "rate": LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 108),
    factors={"part": parts.OTHERS},
    primary="rule",
    nothing="none",
    quick={"part.data": {"name": "digits", "train": 400, "side": 8}, "part.model.patch_size": 4,
           "part.recipe.steps": 3, "part.recipe.warmup": 0, "ratio": 0.1},
)  # fmt: skip

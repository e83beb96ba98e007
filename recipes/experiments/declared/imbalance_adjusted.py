"""MHE beside logit adjustment, on the classes of imbalance: the lead of its arm outside of the rivals."""

from __future__ import annotations

from declared import _rivals as rivals
from declared.imbalance import ADJUSTED, DECAY
from declared.imbalance import EXPERIMENT as FIRST
from harness.plan.experiment import Arm, Experiment

LR = [0.025, 0.05]

EXPERIMENT = Experiment(
    name="imbalance_adjusted",
    title="Rare classes, MHE beside logit adjustment",
    question="Does MHE on the class vectors add to logit adjustment, and more than fixed vectors or weight decay do?",
    task=FIRST.task,
    settings=FIRST.settings,
    arms=[
        Arm("adjusted_mhe", "logit adjustment, and MHE", {**ADJUSTED, "penalty": rivals.CLASS_VECTORS},
            {"penalty.output_weight": [1.0, 10.0], "recipe.lr": LR}),
        Arm("logit_adjustment", "logit adjustment", ADJUSTED, {"model.tau": [0.75, 1.0], "recipe.lr": LR}),
        Arm("adjusted_decay", "logit adjustment, weight decay", ADJUSTED,
            {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
        Arm("adjusted_prototypes", "logit adjustment, fixed class vectors", {**ADJUSTED, "prototypes": True},
            {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
        Arm("none", "nothing", {}, {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(200, 216),
    factors=FIRST.factors,
    primary="adjusted_mhe",
    nothing="none",
    role="output",
    further=FIRST.further,
    quick=FIRST.quick,
)  # fmt: skip

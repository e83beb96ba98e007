"""Rare classes: fixed class vectors of least energy beside logit adjustment, the lead of imbalance_adjusted."""

from __future__ import annotations

from declared.imbalance import ADJUSTED, DECAY, LR
from declared.imbalance import EXPERIMENT as FIRST
from harness.plan.experiment import Arm, Experiment

CHOICE = {"recipe.weight_decay": DECAY, "recipe.lr": LR}

EXPERIMENT = Experiment(
    name="rare_prototypes",
    title="Rare classes, fixed class vectors of least energy",
    question="Are fixed class vectors of least energy better than learnt ones, beside the best loss for rare classes?",
    task=FIRST.task,
    settings=FIRST.settings,
    arms=[
        Arm("least_energy", "fixed vectors of least energy", {**ADJUSTED, "prototypes": True}, CHOICE),
        Arm("logit_adjustment", "logit adjustment", ADJUSTED, CHOICE),
        Arm("class_balanced", "class-balanced loss", {"model.loss": "class_balanced"}, CHOICE),
        Arm("random", "fixed random vectors", {**ADJUSTED, "prototypes": "random"}, CHOICE),
        Arm("none", "nothing", {}, CHOICE),
        # The least energy of so few classes, but for a shift that a softmax does not see.
        Arm("orthonormal", "fixed orthonormal vectors", {**ADJUSTED, "prototypes": "orthonormal"}, CHOICE),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(300, 316),
    factors=FIRST.factors,
    primary="least_energy",
    nothing="none",
    outside=["orthonormal"],
    role="output",
    further=FIRST.further,
    quick=FIRST.quick,
)  # fmt: skip

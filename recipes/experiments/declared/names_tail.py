"""Which of 246 languages a name is in: classes in the long tail, and many classes in few dimensions."""

from __future__ import annotations

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [5e-3, 1e-2]
DECAY = [0.0, 0.03]
WEIGHTS = [0.3, 3.0]

EXPERIMENT = Experiment(
    name="names_tail",
    title="Many classes, and a long tail of them",
    question="Does MHE on the class vectors help rare classes, beside losses made for that?",
    task="naming",
    settings={
        "data": {"name": "names", "languages": None},
        "model": {"dim": 32, "head": "plain", "loss": "cross_entropy", "prototypes": False},
        "recipe": {"lr": 1e-2, "optimizer": "adam", "steps": 3000, "batch": 128},
        "penalty": None,
    },
    arms=[
        Arm("mhe", "MHE on the class vectors", {"penalty": rivals.CLASS_VECTORS},
            {"penalty.output_weight": WEIGHTS, "recipe.lr": LR}),
        Arm("none", "nothing", {}, {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
        Arm("logit_adjustment", "logit adjustment", {"model.loss": "logit_adjustment"},
            {"model.tau": [1.0, 1.5], "recipe.lr": LR}),
        Arm("class_balanced", "class-balanced loss", {"model.loss": "class_balanced"},
            {"model.beta": [0.999, 1.0], "recipe.lr": LR}),
        Arm("prototypes", "fixed prototypes of least energy", {"model.prototypes": True},
            {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 108),
    factors={"model.head": ["plain", "normalised"]},
    primary="mhe",
    nothing="none",
    role="output",
    further={"test_rare": "rare languages, %"},
    quick={"data.languages": 60, "recipe.steps": 3},
)  # fmt: skip

"""Which of 246 languages a name is in: classes in the long tail, and many classes in few dimensions."""

from __future__ import annotations

from typing import Any

from harness.experiment import Arm, Experiment

# On the class vectors alone; an output group is always full space.
CLASS_VECTORS: dict[str, Any] = {"name": "mhe", "s": 2.0, "softening": 0.1, "hidden_weight": 0.0}
WEIGHTS = [0.3, 1.0, 3.0, 10.0]
LR = [2e-3, 5e-3, 1e-2, 2e-2]

EXPERIMENT = Experiment(
    name="names_tail",
    title="Many classes, and a long tail of them",
    question="Does MHE on the class vectors help rare classes, beside losses made for that?",
    task="naming",
    settings={
        "data": {"name": "names", "languages": None},
        "model": {"dim": 32, "head": "plain", "loss": "cross_entropy", "prototypes": False},
        "recipe": {"lr": 1e-2, "optimizer": "adam", "steps": 5000, "batch": 128},
        "penalty": None,
    },
    arms=[
        Arm("mhe", "MHE on the class vectors", {"penalty": CLASS_VECTORS}, {"penalty.output_weight": WEIGHTS}),
        Arm("none", "nothing", {}, {"recipe.lr": LR}),
        Arm("logit_adjustment", "logit adjustment", {"model.loss": "logit_adjustment"}, {"recipe.lr": LR}),
        Arm("class_balanced", "class-balanced loss", {"model.loss": "class_balanced"}, {"recipe.lr": LR}),
        Arm("prototypes", "fixed prototypes of least energy", {"model.prototypes": True}, {"recipe.lr": LR}),
        Arm("adjusted_mhe", "logit adjustment, and MHE",
            {"model.loss": "logit_adjustment", "penalty": CLASS_VECTORS}, {"penalty.output_weight": WEIGHTS}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 108),
    factors={"model.head": ["plain", "normalised"]},
    primary="mhe",
    nothing="none",
    outside=["adjusted_mhe"],
    quick={"data.languages": 12, "recipe.steps": 3},
)  # fmt: skip

"""Forty classes in few dimensions: garments of Fashion-MNIST in four rotations, 3 to 16 features."""

from __future__ import annotations

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [0.05, 0.2]
DECAY = [5e-4, 2e-3]

EXPERIMENT = Experiment(
    name="few_dimensions",
    title="Forty classes in few dimensions",
    question="Does MHE on the class vectors help where there are many more classes than dimensions?",
    task="classifying",
    settings={
        "data": {"name": "fashion-mnist", "train": 10_000, "side": 14},
        "rotations": 4,
        "imbalance": 1,
        "model": {"widths": [8, 16, 32], "depth": 1, "features": 16, "normalised": True},
        "recipe": {"lr": 0.05, "steps": 780, "weight_decay": 5e-4},
        "prototypes": False,
        "penalty": None,
    },
    arms=[
        Arm("mhe", "MHE on the class vectors", {"penalty": rivals.CLASS_VECTORS},
            {"penalty.output_weight": [0.01, 0.1], "recipe.lr": LR}),
        Arm("none", "nothing", {}, {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
        Arm("prototypes", "fixed class vectors of least energy", {"prototypes": True},
            {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
        Arm("soft_orthogonality", "soft orthogonality", {"penalty": {**rivals.SOFT_ORTHOGONALITY, "role": "output"}},
            {"penalty.weight": [1e-3, 1e-2], "recipe.lr": LR}),
        Arm("minimal_angle", "minimal angle (MMA)", {"penalty": {**rivals.MINIMAL_ANGLE, "role": "output"}},
            {"penalty.weight": [0.01, 0.1], "recipe.lr": LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 116),
    factors={"model.features": [3, 8]},
    claimed={"model.features": 3},
    primary="mhe",
    nothing="none",
    role="output",
    quick={"data": {"name": "digits", "train": 400, "side": 8}, "recipe.steps": 3},
)  # fmt: skip

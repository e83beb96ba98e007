"""SphereFace+: verification of classes that were not trained on, with and without MHE on the class vectors."""

from __future__ import annotations

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [0.02, 0.05]
MANY_LR = [0.01, 0.02, 0.05, 0.1]

EXPERIMENT = Experiment(
    name="open_set",
    title="Open-set verification with an angular margin",
    question="Does MHE on the class vectors help to verify unseen classes where there is no margin, and with one?",
    task="verifying",
    settings={
        "data": {"name": "fashion-mnist", "train": 10_000, "side": 14},
        "garments": [6, 2, 2],  # to train on, for choosing, for the test; each in four rotations
        "model": {"widths": [8, 16, 32], "depth": 1, "features": 16, "margin": 1},
        "recipe": {"lr": 0.05, "steps": 780, "weight_decay": 5e-4},
        "prototypes": False,
        "penalty": None,
    },
    arms=[
        Arm("mhe", "MHE on the class vectors", {"penalty": rivals.CLASS_VECTORS},
            {"penalty.output_weight": [1.0, 10.0], "recipe.lr": LR}),
        Arm("none", "no MHE", {}, {"recipe.lr": MANY_LR}),
        Arm("prototypes", "fixed class vectors of least energy", {"prototypes": True}, {"recipe.lr": MANY_LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 112),
    factors={"model.margin": [1, 2, 3, 4]},
    claimed={"model.margin": 1},
    called="TAR at FAR 1e-2, %",
    primary="mhe",
    nothing="none",
    role="output",
    further={"test_auc": "AUC, %", "familiar": "accuracy on the classes trained on, %"},
    quick={"data": {"name": "digits", "train": 400, "side": 8}, "recipe.steps": 3},
)  # fmt: skip

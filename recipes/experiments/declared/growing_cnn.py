"""A convolutional network with batch normalization, its channels widened 4-fold by exact copies and trained on."""

from __future__ import annotations

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [0.05, 0.1]
MANY_LR = [0.02, 0.05, 0.1, 0.2]
A_LITTLE_NOISE = {"how": "noise", "size": 0.01}
RENEWED = {"how": "renewed", "rows": "normal", "outgoing": 0.0}

EXPERIMENT = Experiment(
    name="growing_cnn",
    title="Growing a convolutional network by copies",
    question="Does the gain of the perceptron hold with convolutions and batch normalization?",
    task="growing",
    settings={
        "data": {"name": "fashion-mnist", "train": 10_000, "side": 14},
        "model": {"kind": "conv", "widened": "widths", "widths": [4, 8, 16], "depth": 1, "features": 32},
        "factor": 4,
        "base": {"lr": 0.05, "epochs": 4},
        "grown": {"lr": 0.05, "epochs": 8},
        "start": {"how": "copied"},
        "penalty": None,
    },
    arms=[
        Arm("mhe_full", "MHE, full space", {"start": A_LITTLE_NOISE, "penalty": rivals.MHE_FULL},
            {"penalty.hidden_weight": [1.0, 10.0], "grown.lr": LR}),
        Arm("copied", "as copied", {}, {"grown.lr": MANY_LR}),
        Arm("noise", "noise on the copies", {"start": {"how": "noise"}}, {"start.size": [0.3, 1.0], "grown.lr": LR}),
        Arm("renewed", "copies re-initialised", {"start": RENEWED}, {"start.outgoing": [0.0, 0.3], "grown.lr": LR}),
        Arm("soft_orthogonality", "soft orthogonality",
            {"start": A_LITTLE_NOISE, "penalty": rivals.SOFT_ORTHOGONALITY},
            {"penalty.weight": [1e-4, 1e-3], "grown.lr": LR}),
        Arm("minimal_angle", "minimal angle (MMA)", {"start": A_LITTLE_NOISE, "penalty": rivals.MINIMAL_ANGLE},
            {"penalty.weight": [0.1, 1.0], "grown.lr": LR}),
        Arm("renewed_mhe", "copies re-initialised, and MHE", {"start": RENEWED, "penalty": rivals.MHE_FULL},
            {"penalty.hidden_weight": [1.0, 10.0], "grown.lr": LR}),
        Arm("scratch_data", "wide from scratch, equal data", {"start": {"how": "scratch"}, "grown.epochs": 12},
            {"grown.lr": MANY_LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 108),
    primary="mhe_full",
    nothing="copied",
    outside=["renewed_mhe", "scratch_data"],
    quick={
        "data": {"name": "digits", "train": 400, "side": 8},
        "base": {"lr": 0.05, "steps": 3},
        "grown.epochs": None,
        "grown.steps": 3,
    },
)  # fmt: skip

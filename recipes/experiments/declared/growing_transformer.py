"""A small vision transformer of transformers (ViT), the hidden layers of its MLPs widened 8-fold by exact copies."""

from __future__ import annotations

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [5e-3, 1e-2]
DECAY = [0.0, 0.1]
A_LITTLE_NOISE = {"how": "noise", "size": 0.01}
RENEWED = {"how": "renewed", "rows": "normal", "outgoing": 0.0}
GROWN_LAYERS = ["*.mlp.fc1"]  # what was copied

EXPERIMENT = Experiment(
    name="growing_transformer",
    title="Growing a small transformer's MLPs by copies",
    question="Does the gain of the perceptron hold with attention and Adam?",
    task="growing",
    settings={
        "data": {"name": "fashion-mnist", "train": 10_000, "side": 14},
        "model": {
            "kind": "patches",
            "widened": "intermediate_size",
            "intermediate_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 7,
        },
        "factor": 8,
        "base": {"lr": 5e-3, "optimizer": "adam", "epochs": 8, "warmup": 50},
        "grown": {"lr": 5e-3, "optimizer": "adam", "epochs": 16, "warmup": 50},
        "start": {"how": "copied"},
        "penalty": None,
    },
    arms=[
        Arm("mhe_full", "MHE, full space",
            {"start": A_LITTLE_NOISE, "penalty": {**rivals.MHE_FULL, "include": GROWN_LAYERS}},
            {"penalty.hidden_weight": [1.0, 10.0], "grown.lr": LR}),
        Arm("mhe_all", "MHE on every hidden layer", {"start": A_LITTLE_NOISE, "penalty": rivals.MHE_FULL},
            {"penalty.hidden_weight": [0.1, 1.0], "grown.lr": LR}),
        Arm("copied", "as copied", {}, {"grown.weight_decay": DECAY, "grown.lr": LR}),
        Arm("noise", "noise on the copies", {"start": {"how": "noise"}}, {"start.size": [0.3, 1.0], "grown.lr": LR}),
        Arm("renewed", "copies re-initialised", {"start": RENEWED}, {"start.outgoing": [0.0, 0.3], "grown.lr": LR}),
        Arm("soft_orthogonality", "soft orthogonality",
            {"start": A_LITTLE_NOISE, "penalty": {**rivals.SOFT_ORTHOGONALITY, "include": GROWN_LAYERS}},
            {"penalty.weight": [1e-4, 1e-3], "grown.lr": LR}),
        Arm("minimal_angle", "minimal angle (MMA)",
            {"start": A_LITTLE_NOISE, "penalty": {**rivals.MINIMAL_ANGLE, "include": GROWN_LAYERS}},
            {"penalty.weight": [0.1, 1.0], "grown.lr": LR}),
        Arm("renewed_mhe", "copies re-initialised, and MHE",
            {"start": RENEWED, "penalty": {**rivals.MHE_FULL, "include": GROWN_LAYERS}},
            {"penalty.hidden_weight": [1.0, 10.0], "grown.lr": LR}),
        Arm("scratch_data", "wide from scratch, equal data", {"start": {"how": "scratch"}, "grown.epochs": 24},
            {"grown.weight_decay": DECAY, "grown.lr": LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 108),
    primary="mhe_full",
    nothing="copied",
    outside=["mhe_all", "renewed_mhe", "scratch_data"],
    quick={
        "data": {"name": "digits", "train": 400, "side": 8},
        "model.patch_size": 4,
        "base": {"lr": 0.005, "optimizer": "adam", "steps": 3},
        "grown.epochs": None,
        "grown.steps": 3,
    },
)  # fmt: skip

"""A small dense transformer of image patches becomes a mixture of four experts, each a copy of its MLP."""

from __future__ import annotations

from typing import Any

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [5e-3, 1e-2]
DECAY = [0.0, 0.1]
A_LITTLE_NOISE = {"how": "noise", "size": 0.01}
# Between experts alone; a sphere has thousands of dimensions here, and softening hardly matters.
ACROSS: dict[str, Any] = {**rivals.MHE_FULL, "hidden_weight": 0.0, "across": ["experts"]}

EXPERIMENT = Experiment(
    name="upcycling",
    title="Upcycling to a mixture of experts",
    question="Does MHE across experts that begin as copies help, beside noise and units drawn anew?",
    task="growing",
    settings={
        "data": {"name": "fashion-mnist", "train": 10_000, "side": 28},
        "model": {
            "kind": "mixture",
            "widened": "num_local_experts",
            "num_local_experts": 1,
            "num_experts_per_tok": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "patch_size": 7,
        },
        "factor": 4,
        "base": {"lr": 5e-3, "optimizer": "adam", "epochs": 4, "warmup": 50},
        "grown": {"lr": 5e-3, "optimizer": "adam", "epochs": 8, "warmup": 50},
        "start": {"how": "copied"},
        "penalty": None,
    },
    arms=[
        Arm("mhe_across", "MHE across experts", {"start": A_LITTLE_NOISE, "penalty": ACROSS},
            {"penalty.across_weight": [0.1, 1.0], "grown.lr": LR}),
        Arm("copied", "as copied", {}, {"grown.weight_decay": DECAY, "grown.lr": LR}),
        Arm("noise", "noise on the copies", {"start": {"how": "noise"}}, {"start.size": [0.3, 1.0], "grown.lr": LR}),
        Arm("renewed", "a share of the units drawn anew", {"start": {"how": "renewed"}},
            {"start.share": [0.25, 0.5], "grown.lr": LR}),
        Arm("mhe_within", "MHE on the neurons of each expert", {"start": A_LITTLE_NOISE, "penalty": rivals.MHE_FULL},
            {"penalty.hidden_weight": [0.1, 1.0], "grown.lr": LR}),
        Arm("dense", "dense, trained on", {"factor": 1}, {"grown.weight_decay": DECAY, "grown.lr": LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 108),
    primary="mhe_across",
    nothing="copied",
    outside=["mhe_within", "dense"],
    quick={
        "data": {"name": "digits", "train": 400, "side": 8},
        "model.patch_size": 4,
        "base": {"lr": 0.005, "optimizer": "adam", "steps": 3},
        "grown.epochs": None,
        "grown.steps": 3,
    },
)  # fmt: skip

"""What a low energy buys beside accuracy: damaged weights, calibration, inputs of another kind."""

from __future__ import annotations

from typing import Any

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [0.05, 0.1]
MANY_LR = [0.02, 0.05, 0.1, 0.2]


def mhe(weight: float) -> Arm:
    penalty: dict[str, Any] = {**rivals.MHE_FULL, "hidden_weight": weight}
    return Arm(f"mhe_{weight:g}", f"MHE, λ = {weight:g}", {"penalty": penalty}, {"recipe.lr": MANY_LR})


EXPERIMENT = Experiment(
    name="robustness",
    title="Robustness to damaged weights",
    question="Do networks of low energy lose less by pruning, few bits and noise, and know better what they know?",
    task="enduring",
    settings={
        "data": {"name": "fashion-mnist", "train": 20_000, "side": 28},
        "model": {"kind": "mlp", "widths": [64, 64]},
        "recipe": {"lr": 0.05, "steps": 1248, "weight_decay": 0.0},
        "damages": {"pruned": [0.5, 0.7, 0.8], "bits": [8, 4, 3], "noise": [0.1, 0.3, 0.5], "draws": 5},
        "penalty": None,
    },
    arms=[
        mhe(10.0),
        mhe(1.0),
        mhe(100.0),
        Arm("none", "nothing", {}, {"recipe.lr": MANY_LR}),
        Arm("weight_decay", "weight decay", {}, {"recipe.weight_decay": [5e-4, 2e-3], "recipe.lr": LR}),
        Arm("soft_orthogonality", "soft orthogonality", {"penalty": rivals.SOFT_ORTHOGONALITY},
            {"penalty.weight": [1e-4, 1e-3], "recipe.lr": LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 116),
    measure="kept",
    called="left of the accuracy, %",
    primary="mhe_10",
    nothing="none",
    outside=["mhe_1", "mhe_100"],
    further={
        "test": "accuracy, %",
        "pruned_50": "50 % pruned", "pruned_70": "70 % pruned", "pruned_80": "80 % pruned",
        "bits_8": "8 bits", "bits_4": "4 bits", "bits_3": "3 bits",
        "noise_0.1": "noise 0.1", "noise_0.3": "noise 0.3", "noise_0.5": "noise 0.5",
        "ece": "calibration error, %", "ood_rotated": "AUROC, rotated", "ood_digits": "AUROC, digits",
    },
    quick={"data": {"name": "digits", "train": 400, "side": 8}, "recipe.steps": 3, "damages.draws": 1},
)  # fmt: skip

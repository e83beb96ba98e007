"""A perceptron of Fashion-MNIST, widened 8-fold by exact copies and trained on."""

from __future__ import annotations

from typing import Any

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [0.05, 0.1]
MANY_LR = [0.02, 0.035, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3]  # for an arm with nothing else to choose
A_LITTLE_NOISE = {"how": "noise", "size": 0.01}  # exact copies have no direction in which to part
RENEWED = {"how": "renewed", "rows": "normal", "outgoing": 0.0}


def rival(name: str, says: str, options: dict[str, Any], field: str, weights: list[float]) -> Arm:
    """An arm whose weight is chosen from four, with the learning rate from two."""
    fixed = {"start": A_LITTLE_NOISE, "penalty": options}
    return Arm(name, says, fixed, {f"penalty.{field}": weights, "grown.lr": LR})


EXPERIMENT = Experiment(
    name="growing_mlp",
    title="Growing a perceptron by copies",
    question="After widening by exact copies: does MHE part the copies to more use than noise, new units or a rival?",
    task="growing",
    settings={
        "data": {"name": "fashion-mnist", "train": 20_000, "side": 28},
        "model": {"kind": "mlp", "widened": "widths", "widths": [8, 8]},
        "factor": 8,
        "base": {"lr": 0.05, "epochs": 4},
        "grown": {"lr": 0.05, "epochs": 8},
        "start": {"how": "copied"},
        "penalty": None,
    },
    arms=[
        Arm("mhe_full", "MHE, full space", {"start": A_LITTLE_NOISE, "penalty": rivals.MHE_FULL},
            {"penalty.hidden_weight": [3.0, 10.0, 30.0, 100.0], "grown.lr": LR}),
        Arm("mhe_half", "MHE, half space", {"start": A_LITTLE_NOISE, "penalty": rivals.MHE_HALF},
            {"penalty.hidden_weight": [3.0, 10.0, 30.0, 100.0], "grown.lr": LR}),
        Arm("copied", "as copied", {}, {"grown.lr": MANY_LR}),
        Arm("noise", "noise on the copies", {"start": {"how": "noise"}},
            {"start.size": [0.3, 1.0, 2.0, 4.0], "grown.lr": LR}),
        Arm("weight_decay", "noise 1, weight decay", {"start": {"how": "noise", "size": 1.0}},
            {"grown.weight_decay": [1e-4, 5e-4, 2e-3, 5e-3], "grown.lr": LR}),
        Arm("renewed", "copies re-initialised", {"start": RENEWED},
            {"start.outgoing": [0.0, 0.1, 0.3, 1.0], "grown.lr": LR}),
        Arm("renewed_orthogonal", "copies re-initialised, orthogonal", {"start": {**RENEWED, "rows": "orthogonal"}},
            {"start.outgoing": [0.0, 0.1, 0.3, 1.0], "grown.lr": LR}),
        rival("soft_orthogonality", "soft orthogonality", rivals.SOFT_ORTHOGONALITY, "weight",
                [1e-4, 1e-3, 1e-2, 3e-2]),
        rival("srip", "SRIP", rivals.SRIP, "weight", [1e-3, 1e-2, 1e-1, 1.0]),
        rival("minimal_angle", "minimal angle (MMA)", rivals.MINIMAL_ANGLE, "weight", [0.1, 0.3, 1.0, 3.0]),
        rival("comhe_random", "CoMHE, random projections", rivals.COMHE, "weight", [1.0, 3.0, 10.0, 30.0]),
        Arm("renewed_mhe", "copies re-initialised, and MHE", {"start": RENEWED, "penalty": rivals.MHE_FULL},
            {"penalty.hidden_weight": [1.0, 3.0, 10.0, 30.0], "grown.lr": LR}),
        Arm("scratch_data", "wide from scratch, equal data", {"start": {"how": "scratch"}, "grown.epochs": 12},
            {"grown.lr": MANY_LR}),
        # Four epochs of the small model are 4 x 6,442 / 55,050 epochs of the wide one.
        Arm("scratch_cost", "wide from scratch, equal cost", {"start": {"how": "scratch"}, "grown.epochs": 8.47},
            {"grown.lr": MANY_LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 110),
    primary="mhe_full",
    nothing="copied",
    outside=["mhe_half", "renewed_mhe", "scratch_data", "scratch_cost"],
    quick={
        "data": {"name": "digits", "train": 400, "side": 8},
        "base": {"lr": 0.05, "steps": 3},
        "grown.epochs": None,
        "grown.steps": 3,
    },
)  # fmt: skip

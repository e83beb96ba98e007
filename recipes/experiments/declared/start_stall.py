"""The authors' network at a quarter of its width: what starts, and at which learning rate."""

from __future__ import annotations

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

# The authors' weights: 0.1 on the hidden layers and 1 on the output, and for half space ten times as much (in
# their logs the penalty of the full-space runs is a tenth of the half-space runs').
FULL = {**rivals.MHE_FULL, "softening": 0.01, "hidden_weight": 0.1, "output_weight": 1.0}
HALF = {**rivals.MHE_HALF, "softening": 0.01, "hidden_weight": 1.0, "output_weight": 10.0}

EXPERIMENT = Experiment(
    name="start_stall",
    title="Starting: the authors' network",
    question="Which share of seeds stalls at which learning rate, with and without warm-up, in each arm?",
    task="starting",
    settings={
        "data": {"name": "fashion-mnist", "train": 10_000, "side": 14},
        "model": {"kind": "conv", "widths": [16, 32, 64], "depth": 3, "features": 64, "loss": "authors"},
        "recipe": {"lr": 0.1, "steps": 300, "weight_decay": 5e-4, "schedule": "steps", "warmup": 0},
        "start": "given",
        "penalty": None,
        "penalty_share": 1,
    },
    arms=[
        Arm("none", "no penalty"),
        Arm("full", "MHE, full space (0.1, 1)", {"penalty": FULL}),
        Arm("half", "MHE, half space (1, 10)", {"penalty": HALF}),
        Arm("early", "MHE, half space, first tenth", {"penalty": HALF, "penalty_share": 0.1}),
        Arm("orthogonal", "orthogonal initialisation", {"start": "orthogonal"}),
        Arm("minimal_energy", "directions of least energy", {"start": "minimal_energy"}),
    ],
    final_seeds=range(100, 108),
    factors={"recipe.warmup": [0, 100], "recipe.lr": [0.05, 0.1, 0.2, 0.4]},
    measure="started",
    called="started, % of cells",
    primary="half",
    nothing="none",
    quick={"data": {"name": "digits", "train": 400, "side": 8}, "recipe.steps": 10,
           "model.widths": [4, 8, 8], "model.features": 8},
)  # fmt: skip

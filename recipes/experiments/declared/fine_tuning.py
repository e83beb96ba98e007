"""A BERT whose layers are redundant, fine-tuned on other classes: the lead of lambda_curves, with rivals."""

from __future__ import annotations

from declared import _parts as parts
from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

RATES = [1.0, 2.0]  # times that of the part
DECAY = [0.0, 0.1]

EXPERIMENT = Experiment(
    name="fine_tuning",
    title="Fine-tuning a redundant checkpoint",
    question="Does MHE help to fine-tune a checkpoint whose neurons are nearly alike, beside what else parts them?",
    task="weighing",
    settings={
        "part": parts.FINE_TUNING, "penalty": None, "by_ratio": False, "ratio": None, "rate": 1.0, "start": None,
    },
    arms=[
        Arm("mhe", "MHE", {"penalty": rivals.MHE_FULL}, {"penalty.hidden_weight": [30.0, 100.0], "rate": RATES}),
        Arm("none", "nothing", {}, {"part.recipe.weight_decay": DECAY, "rate": RATES}),
        Arm("soft_orthogonality", "soft orthogonality", {"penalty": rivals.SOFT_ORTHOGONALITY},
            {"penalty.weight": [0.01, 0.1], "rate": RATES}),
        Arm("minimal_angle", "minimal angle (MMA)", {"penalty": rivals.MINIMAL_ANGLE},
            {"penalty.weight": [10.0, 30.0], "rate": RATES}),
        Arm("orthogonal", "orthogonal directions at the start", {"start": "orthogonal"},
            {"part.recipe.weight_decay": DECAY, "rate": RATES}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(200, 212),
    primary="mhe",
    nothing="none",
    quick={"part.data.languages": 60, "part.base.steps": 3, "part.base.warmup": 0, "part.recipe.steps": 3,
           "part.recipe.warmup": 0},
)  # fmt: skip

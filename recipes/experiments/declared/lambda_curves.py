"""Accuracy over the weight of MHE, and over the ratio of the gradients: from scratch, in fine-tuning and with LoRA."""

from __future__ import annotations

from declared import _parts as parts
from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

WEIGHTS = [0.01, 0.1, 1.0, 3.0, 10.0, 100.0]

EXPERIMENT = Experiment(
    name="lambda_curves",
    title="Accuracy over the weight of MHE",
    question="Which weight of MHE helps, in which kind of training, and does the ratio of the gradients say which?",
    task="weighing",
    settings={"part": {}, "penalty": None, "by_ratio": False, "ratio": None, "rate": 1.0},
    arms=[
        Arm("none", "λ = 0"),
        *(Arm(f"mhe_{w:g}", f"λ = {w:g}", {"penalty": {**rivals.MHE_FULL, "hidden_weight": w}}) for w in WEIGHTS),
    ],
    final_seeds=range(100, 108),
    factors={"part": parts.CURVES},
    nothing="none",
    quick={"part.data": {"name": "digits", "train": 400, "side": 8}, "part.recipe.steps": 3},
)

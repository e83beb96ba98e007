"""A vision transformer from scratch with Adam: the lead of lambda_rule, with rivals, and with lengths held."""

from __future__ import annotations

from typing import Any

from declared import _parts as parts
from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

RATES = [1.0, 2.0, 4.0]  # times that of the part
HELD: dict[str, Any] = {"name": "lengths_held", "weight": 1.0, "lengths": 0.1, "s": 2.0, "softening": 0.5}

EXPERIMENT = Experiment(
    name="from_scratch",
    title="A vision transformer from scratch, lengths held",
    question="Adam drives neurons together: does MHE with lengths held help more than what else keeps them apart?",
    task="weighing",
    settings={"part": parts.VIT, "penalty": None, "by_ratio": False, "ratio": None, "rate": 1.0},
    arms=[
        Arm("mhe_held", "MHE, lengths held", {"penalty": HELD}, {"penalty.energy": [1.0, 10.0], "rate": RATES}),
        Arm("mhe", "MHE", {"penalty": rivals.MHE_FULL}, {"penalty.hidden_weight": [1.0, 10.0], "rate": RATES}),
        Arm("held", "lengths held", {"penalty": HELD}, {"penalty.lengths": [0.01, 0.1], "rate": RATES}),
        Arm("none", "nothing", {}, {"part.recipe.weight_decay": [0.0, 0.03], "rate": RATES}),
        Arm("soft_orthogonality", "soft orthogonality", {"penalty": rivals.SOFT_ORTHOGONALITY},
            {"penalty.weight": [0.01, 0.1], "rate": RATES}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(200, 212),
    primary="mhe_held",
    nothing="none",
    quick={"part.data": {"name": "digits", "train": 400, "side": 8}, "part.model.patch_size": 4,
           "part.recipe.steps": 3, "part.recipe.warmup": 0},
)  # fmt: skip

"""fine_tuning, less extreme: the BERT is about as redundant as the published encoder in README.md."""

from __future__ import annotations

from declared import _parts as parts
from declared import _rivals as rivals
from declared.fine_tuning import EXPERIMENT as FIRST
from declared.fine_tuning import RATES
from harness.plan.experiment import Arm, Experiment

EXPERIMENT = Experiment(
    name="less_redundant",
    title="Fine-tuning a moderately redundant checkpoint",
    question="What is left of the gain of MHE where a checkpoint is as redundant as a published encoder?",
    task="weighing",
    settings=FIRST.settings,
    arms=[
        Arm("mhe", "MHE", {"penalty": rivals.MHE_FULL}, {"penalty.hidden_weight": [10.0, 100.0], "rate": RATES}),
        Arm("none", "nothing", {}, {"part.recipe.weight_decay": [0.0, 0.1], "rate": RATES}),
        Arm("soft_orthogonality", "soft orthogonality", {"penalty": rivals.SOFT_ORTHOGONALITY},
            {"penalty.weight": [0.01, 0.1], "rate": RATES}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(300, 310),
    factors={"part": parts.PRETRAINED},
    primary="mhe",
    nothing="none",
    quick=FIRST.quick,
)  # fmt: skip

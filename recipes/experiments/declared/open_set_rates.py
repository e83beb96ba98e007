"""Open-set verification once more, where every arm has the same learning rates to choose from."""

from __future__ import annotations

from declared import _rivals as rivals
from declared.open_set import EXPERIMENT as FIRST
from declared.open_set import MANY_LR
from harness.plan.experiment import Arm, Experiment

EXPERIMENT = Experiment(
    name="open_set_rates",
    title="Open-set verification, the same rates for all",
    question="Without a margin, and at a rate of its own choice, does MHE on the class vectors help or harm?",
    task=FIRST.task,
    settings=FIRST.settings,  # margin 1
    arms=[
        Arm("mhe", "MHE on the class vectors", {"penalty": {**rivals.CLASS_VECTORS, "output_weight": 1.0}},
            {"recipe.lr": MANY_LR}),
        *(arm for arm in FIRST.arms if arm.name != "mhe"),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(200, 212),
    called=FIRST.called,
    primary="mhe",
    nothing="none",
    role="output",
    further=FIRST.further,
    quick=FIRST.quick,
)  # fmt: skip

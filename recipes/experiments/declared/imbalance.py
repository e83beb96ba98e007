"""Fashion-MNIST with classes that fall in number, to a tenth and to a hundredth of the most frequent one."""

from __future__ import annotations

from declared import _rivals as rivals
from harness.plan.experiment import Arm, Experiment

LR = [0.05, 0.1]
DECAY = [5e-4, 2e-3]
ADJUSTED = {"model.loss": "logit_adjustment"}

EXPERIMENT = Experiment(
    name="imbalance",
    title="Ten classes of which some are rare",
    question="Does MHE on the class vectors help rare classes of images, beside losses made for that?",
    task="classifying",
    settings={
        "data": {"name": "fashion-mnist", "train": 20_000, "side": 14},
        "rotations": 1,
        "imbalance": 1,
        "model": {"widths": [8, 16, 32], "depth": 1, "features": 16, "loss": "cross_entropy"},
        "recipe": {"lr": 0.05, "steps": 624, "weight_decay": 5e-4},
        "prototypes": False,
        "penalty": None,
    },
    arms=[
        Arm("mhe", "MHE on the class vectors", {"penalty": rivals.CLASS_VECTORS},
            {"penalty.output_weight": [1.0, 10.0], "recipe.lr": LR}),
        Arm("none", "nothing", {}, {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
        Arm("logit_adjustment", "logit adjustment", ADJUSTED, {"model.tau": [1.0, 1.5], "recipe.lr": LR}),
        Arm("class_balanced", "class-balanced loss", {"model.loss": "class_balanced"},
            {"model.beta": [0.999, 1.0], "recipe.lr": LR}),
        Arm("prototypes", "fixed class vectors of least energy", {"prototypes": True},
            {"recipe.weight_decay": DECAY, "recipe.lr": LR}),
        Arm("adjusted_mhe", "logit adjustment, and MHE", {**ADJUSTED, "penalty": rivals.CLASS_VECTORS},
            {"penalty.output_weight": [1.0, 10.0], "recipe.lr": LR}),
    ],
    tuning_seeds=[0, 1],
    final_seeds=range(100, 108),
    factors={"imbalance": [10, 100]},
    primary="mhe",
    nothing="none",
    role="output",
    outside=["adjusted_mhe"],
    further={"test_rare": "the rarer half of the classes, %"},
    quick={"data": {"name": "digits", "train": 1197, "side": 8}, "recipe.steps": 3},
)  # fmt: skip

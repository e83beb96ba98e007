"""The whole story on data that ships with a dependency: widen a model by copies, train on plain and with MHE, compare,
write a publishable folder. No network, about a minute on two cores."""

from hf_mhe.quickstart.run import QuickstartResult, TrainedModel, run

__all__ = ["QuickstartResult", "TrainedModel", "run"]

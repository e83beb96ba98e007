"""Model cards, publishing, and reading back what was published: one folder, one commit, every claim with its number.
Nothing here computes an energy; it writes down what `analysis` measured and what `training` was asked to do."""

from hf_mhe.hub.bundle import save_for_hub
from hf_mhe.hub.card import model_card
from hf_mhe.hub.load import load_report
from hf_mhe.hub.publish import PlannedFile, plan_push, push_to_hub

__all__ = ["PlannedFile", "load_report", "model_card", "plan_push", "push_to_hub", "save_for_hub"]

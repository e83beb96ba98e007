"""The files that a publishable folder holds beside the model's own, and the repository they may go to."""

from __future__ import annotations

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_mhe.errors import MHEError
from hf_mhe.text import one_line
from hf_mhe.training.config import CONFIG_NAME

README = "README.md"
REPORT = "energy_report.json"
REPORT_BEFORE = "energy_report_before.json"
COMPARISON = "comparison.json"
METRICS = "task_metrics.json"
FIGURE_REPORT = "figures/mhe_scores.png"
FIGURE_COMPARISON = "figures/mhe_before_after.png"
# What this room writes, and so may also remove from a repository when a later push has no such file.
OURS = (CONFIG_NAME, REPORT, REPORT_BEFORE, COMPARISON, METRICS, FIGURE_REPORT, FIGURE_COMPARISON)


def check_repo_id(repo_id: object) -> str:
    """The repo id, if it is one that can be pushed to.

    Raises:
        MHEError: not a string of the form `namespace/name`, or with characters that the Hub does not take.
    """
    right = "give 'namespace/name', such as 'alice/resnet-digits-mhe'"
    if not isinstance(repo_id, str) or repo_id.count("/") != 1:
        raise MHEError(f"repo_id must have the form 'namespace/name'; got {repo_id!r}: {right}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise MHEError(f"repo_id {repo_id!r} is not one that the Hub takes: {one_line(error)}; {right}") from error
    return repo_id

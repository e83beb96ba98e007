"""Reading back what was published."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download

from hf_mhe.analysis import EnergyReport
from hf_mhe.errors import MHEError
from hf_mhe.hub.names import REPORT, check_repo_id
from hf_mhe.hub_errors import hub_errors


def load_report(
    repo_id_or_folder: str | Path,
    *,
    filename: str = REPORT,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> EnergyReport:
    """The energy report that was published with a model; `filename="energy_report_before.json"` for the one before.

    Args:
        repo_id_or_folder: a folder that `save_for_hub` wrote, or a repo id; an existing folder comes first.
        filename: which report.
        revision: branch, tag or commit of the repository.
        token: Hub token, or False to send none.
        cache_dir: where the Hub cache lies, if not in its usual place.

    Raises:
        MHEError: the folder or the repository has no such report, or cannot be read, or the file is no report.
    """
    folder = Path(repo_id_or_folder)
    if folder.is_dir():
        if not (folder / filename).is_file():
            raise MHEError(f"{str(folder)!r} has no {filename}; save_for_hub writes one")
        return EnergyReport.load(folder / filename)
    repo_id = check_repo_id(str(repo_id_or_folder))
    with hub_errors(f"read {filename} of", repo_id, revision=revision):
        path = hf_hub_download(repo_id, filename, revision=revision, token=token, cache_dir=cache_dir)
    return EnergyReport.load(path)

"""Where a saved config lies: in a folder, or in a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

from hf_mhe.errors import MHEError
from hf_mhe.text import one_line


def find_config(
    name: str, source: str | Path, *, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> Path:
    """The file of that name in a folder or, downloaded, of a repo id; an existing folder comes first.

    Raises:
        MHEError: the folder, the repository or the file is not there.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        if not path.is_file():
            raise MHEError(f"{str(folder)!r} has no {name}; MHETrainer and save_pretrained write one")
        return path
    if folder.is_file():
        raise MHEError(f"{str(folder)!r} is a file; give the folder that {name} is in, or a repo id")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    from hf_mhe.hub_errors import HUB_ERRORS, unreadable_source

    try:
        found = hf_hub_download(str(source), name, revision=revision, token=token, cache_dir=cache_dir)
    except HFValidationError as error:
        raise MHEError(f"{str(source)!r} is neither a folder nor a repo id: {one_line(error)}") from error
    except HUB_ERRORS as error:
        raise MHEError(f"cannot read {name}: {unreadable_source(error, str(source), revision)}") from error
    return Path(found)

"""A checkpoint in a Hub repository: its config, index and shards through huggingface_hub and its cache."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from huggingface_hub import _CACHED_NO_EXIST, HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hf_mhe.analysis.checkpoint.locate import locate
from hf_mhe.analysis.checkpoint.location import Location
from hf_mhe.errors import MHEError
from hf_mhe.hub_errors import HUB_ERRORS, unreadable_source

_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def is_repo_id(name: str) -> bool:
    """Whether a string can be a repo id (`name` or `owner/name`): by its form alone, nothing is looked up."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~"))


def locate_repo(
    repo_id: str, *, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> Location:
    """The checkpoint of a model repository, downloaded into the Hub cache (HF_ENDPOINT and HF_HUB_OFFLINE honoured).

    All files come from one commit, whose hash is the location's `revision`.

    Raises:
        MHEError: no such repository or revision, no access, no network, no safetensors weights, a missing shard.
    """
    repo = _Repository(repo_id, revision, token, cache_dir)
    location = locate(repo, repo_id)
    return replace(location, revision=repo.revision)


class _Repository:
    """One repository at one commit: the first file that arrives fixes the commit for the rest."""

    def __init__(
        self, repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
    ) -> None:
        self.repo_id = repo_id
        self.label = f"repository {repo_id}"
        self.revision = revision
        self.token = token
        self.cache_dir = cache_dir
        self.unreachable: LocalEntryNotFoundError | None = None
        self.snapshot: Path | None = None
        self._names: list[str] | None = None
        self.complete = True

    def get(self, name: str) -> Path | None:
        """The local path of one file of the repository, None where the repository has no such file."""
        if self.revision and _COMMIT.match(self.revision) and self._known_absent(name):
            return None
        try:
            path = Path(
                hf_hub_download(
                    self.repo_id,
                    name,
                    revision=self.revision,
                    token=self.token,
                    cache_dir=self.cache_dir,
                    # Once the Hub could not be reached, the cache is asked alone: no second wait for a timeout.
                    local_files_only=self.unreachable is not None,
                )
            )
        except LocalEntryNotFoundError as error:
            self.unreachable = self.unreachable or error
            return None
        except RemoteEntryNotFoundError:
            return None
        except (*HUB_ERRORS, OSError) as error:
            self._refuse(error)
        # The folder that holds the repository's files in the cache is named after the commit.
        self.snapshot = path.parents[name.count("/")]
        if _COMMIT.match(self.snapshot.name):
            self.revision = self.snapshot.name
        return path

    def _known_absent(self, name: str) -> bool:
        """Whether the cache remembers that this commit has no such file: commits never change."""
        known = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache_dir, revision=self.revision)
        return known is _CACHED_NO_EXIST

    def names(self) -> list[str]:
        """The names of all files of the repository; of those in the cache alone where the Hub cannot be asked."""
        if self._names is None:
            self._names = self._listing()
        return self._names

    def _listing(self) -> list[str]:
        try:
            if self.unreachable is not None:
                raise self.unreachable
            return HfApi().list_repo_files(self.repo_id, revision=self.revision, token=self.token)
        except (*HUB_ERRORS, OSError) as error:
            if self.snapshot is None or isinstance(error, HfHubHTTPError):
                self._refuse(error)
            self.complete = False
            files = (path for path in self.snapshot.rglob("*") if path.is_file())
            return [path.relative_to(self.snapshot).as_posix() for path in files]

    def _refuse(self, error: Exception) -> NoReturn:
        raise MHEError(unreadable_source(error, self.repo_id, self.revision)) from error

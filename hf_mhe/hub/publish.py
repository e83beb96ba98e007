"""`push_to_hub`: a model or a folder, with all its proofs, in one commit."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from hf_mhe._version import __version__
from hf_mhe.analysis import EnergyReport
from hf_mhe.errors import MHEError
from hf_mhe.hub.bundle import claims_of_folder, save_bundle, write_claims
from hf_mhe.hub.claims import CardKeywords, Claims
from hf_mhe.hub.loader_files import left_out, published_files
from hf_mhe.hub.names import OURS, README, check_repo_id
from hf_mhe.hub.readme import is_only_ours, merge_readme, read_readme
from hf_mhe.hub.staged import STALE_WEIGHTS
from hf_mhe.hub_errors import hub_errors
from hf_mhe.text import listed
from hf_mhe.training import MHEConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

_MESSAGE = "Upload model with its hyperspherical energy report"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedFile:
    """One file that a push would send: its path in the repository, and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class _Destination:
    """Where a push goes.

    Raises:
        MHEError: no repo id, or a pull request against another branch than main.
    """

    repo_id: str
    private: bool | None
    revision: str | None
    create_pr: bool
    message: str

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)
        if self.create_pr and self.revision not in (None, "main"):
            raise MHEError(
                f"create_pr opens a pull request against main; revision must be None then, got {self.revision!r}"
            )


def push_to_hub(
    model_or_folder: Any,
    repo_id: str,
    *,
    config: MHEConfig | None = None,
    before: Any = None,
    after: EnergyReport | None = None,
    metrics: Mapping[str, float] | None = None,
    metrics_before: Mapping[str, float] | None = None,
    processor: Any = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
    **card: Unpack[CardKeywords],
) -> CommitInfo:
    """Publish a model with its MHE config, energy reports, figures and model card, all in one commit.

    Everything is checked and written to a temporary folder before the Hub is asked for anything. The repository is
    made if there is none, and so is a branch. A README that is there keeps its text, see `save_for_hub`. The same
    commit deletes files of an earlier push that would be wrong beside the new ones (other shards, a comparison).

    Args:
        model_or_folder: a model with `save_pretrained`, or a folder with a saved one, which is left as it is.
            Of a folder those files are sent that a loader of the model reads (weights, configs, tokenizer, custom
            code, the folders that an index names), the README with what it links to, and the licence; the log names
            what is not sent, such as a training's state.
        repo_id: `namespace/name`.
        config, before, after, metrics, metrics_before, processor, card: see `save_for_hub`. For a folder, what is not
            given is taken from what `save_for_hub` left in it, and the energies are measured anew.
        private: whether a new repository is private; None leaves it to the namespace's default. For a repository that
            is there it must agree with what it is.
        revision: branch to commit to, made from `main` if there is none; default `main`.
        create_pr: open a pull request with the commit instead of changing a branch.
        token: Hub token; None takes the stored one, False sends none.
        commit_message: first line of the commit.

    Returns:
        What huggingface_hub says of the commit.

    Raises:
        MHEError: bad input, found before anything is sent; or the Hub refused or cannot be reached, in which case the
            repository's files are as they were (a repository that was made for this push is named).
    """
    destination = _Destination(repo_id, private, revision, create_pr, commit_message or _MESSAGE)
    claims = Claims(config, before, after, metrics, metrics_before, repo_id, card)
    with _files_to_send(model_or_folder, claims, processor) as files:
        api = HfApi(token=token, library_name="hf_mhe", library_version=__version__)
        return _send(api, destination, files, claims.guessed)


def plan_push(
    model_or_folder: Any,
    repo_id: str,
    *,
    config: MHEConfig | None = None,
    before: Any = None,
    after: EnergyReport | None = None,
    metrics: Mapping[str, float] | None = None,
    metrics_before: Mapping[str, float] | None = None,
    processor: Any = None,
    revision: str | None = None,
    create_pr: bool = False,
    **card: Unpack[CardKeywords],
) -> list[PlannedFile]:
    """What `push_to_hub` with the same arguments would send to an empty repository; the Hub is asked nothing.

    Returns:
        The files, by path.

    Raises:
        MHEError: bad input, as `push_to_hub` finds it before anything is sent.
    """
    _Destination(repo_id, None, revision, create_pr, _MESSAGE)
    claims = Claims(config, before, after, metrics, metrics_before, repo_id, card)
    with _files_to_send(model_or_folder, claims, processor) as files:
        return [PlannedFile(name, path.stat().st_size) for name, path in sorted(files.items())]


@contextmanager
def _files_to_send(model_or_folder: Any, claims: Claims, processor: Any) -> Iterator[dict[str, Path]]:
    """The files of a push, by their paths in the repository; those made for it are gone afterwards.

    Raises:
        MHEError: bad input.
    """
    is_folder = isinstance(model_or_folder, str | Path)
    if is_folder and not Path(model_or_folder).is_dir():
        raise MHEError(f"{str(model_or_folder)!r} is not a folder; give a model, or a folder with a saved one")
    if is_folder and processor is not None:
        raise MHEError("processor is for a model in memory; save it into the folder with processor.save_pretrained")
    with tempfile.TemporaryDirectory(prefix="hf_mhe-") as scratch:
        built = Path(scratch)
        files: dict[str, Path] = {}
        if is_folder:
            folder = Path(model_or_folder)
            write_claims(folder, built, claims_of_folder(folder, claims))
            kept = {path.relative_to(folder).as_posix(): path for path in published_files(folder)}
            files |= {name: path for name, path in kept.items() if name not in OURS}
        else:
            save_bundle(model_or_folder, built, claims, processor)
        files |= {path.relative_to(built).as_posix(): path for path in built.rglob("*") if path.is_file()}
        if is_folder:
            _name_left_out(folder)
        yield files


def _name_left_out(folder: Path) -> None:
    if names := left_out(folder):
        _log.warning("not published, since no loader of the model reads it: %s", listed(names, 20))


@dataclass(frozen=True)
class _Remote:
    """A repository as it was found: its files at the revision, and the commit that they are of."""

    exists: bool
    private: bool = False
    has_revision: bool = False
    head: str | None = None
    files: frozenset[str] = frozenset()


def _send(api: HfApi, destination: _Destination, files: dict[str, Path], guessed: frozenset[str]) -> CommitInfo:
    """Make repository and branch where needed, and the one commit; undo the branch when it fails."""
    repo_id, private = destination.repo_id, destination.private
    with hub_errors("look at", repo_id, revision=destination.revision):
        remote = _look(api, repo_id, destination.revision)
    if remote.exists and private is not None and private != remote.private:
        is_now, asked = ("private", "private=False") if remote.private else ("public", "private=True")
        raise MHEError(f"{repo_id} is there already and is {is_now}; {asked} would not change that: set it on the Hub")
    operations = _operations(api, repo_id, files, guessed, remote)
    if not remote.exists:
        with hub_errors("push to", repo_id):
            # The commit asks the same, when the repository is there already: a card that is refused must not make one.
            ModelCard(files[README].read_text(encoding="utf-8"), ignore_metadata_errors=True).validate()
        with hub_errors("create", repo_id):
            url = api.create_repo(repo_id, private=private)
    try:
        with hub_errors("push to", repo_id):
            return _commit(api, destination, operations, remote)
    except MHEError as error:
        if remote.exists:
            raise
        raise MHEError(f"{error}; the new repository {url} was made and is empty") from error.__cause__


def _commit(
    api: HfApi,
    destination: _Destination,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    remote: _Remote,
) -> CommitInfo:
    """The one commit, on a branch that is made for it if need be, and removed again when the commit fails."""
    repo_id, revision = destination.repo_id, destination.revision
    new_branch = None if remote.has_revision or revision == "main" else revision
    if new_branch is not None:
        api.create_branch(repo_id, branch=new_branch)
    try:
        # Not upload_folder: where Xet is installed it sends a large folder in several commits.
        return api.create_commit(
            repo_id,
            operations,
            commit_message=destination.message,
            revision=revision,
            create_pr=destination.create_pr,
            # Fails rather than overwrite what somebody else pushed since we looked.
            parent_commit=remote.head if remote.has_revision else None,
        )
    except BaseException:
        if new_branch is not None:
            api.delete_branch(repo_id, branch=new_branch)
        raise


def _look(api: HfApi, repo_id: str, revision: str | None) -> _Remote:
    """What is there now. A missing repository or revision is an answer, every other refusal an error."""
    try:
        info = api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        info = api.model_info(repo_id)
        return _Remote(True, bool(info.private), False, info.sha, frozenset(_names(info)))
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return _Remote(False)
    return _Remote(True, bool(info.private), True, info.sha, frozenset(_names(info)))


def _names(info: Any) -> list[str]:
    return [sibling.rfilename for sibling in info.siblings or ()]


def _operations(
    api: HfApi, repo_id: str, files: dict[str, Path], guessed: frozenset[str], remote: _Remote
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Every file of the push, and the removal of what an earlier one left that would be wrong beside it."""
    if README in remote.files:
        local = read_readme(files[README], README)
        # A README with text of its own was written for this push; ours alone goes into the one on the Hub.
        if is_only_ours(local):
            with tempfile.TemporaryDirectory() as scratch:
                with hub_errors(f"read {README} of", repo_id):
                    path = api.hf_hub_download(repo_id, README, revision=remote.head, local_dir=scratch)
                existing = read_readme(Path(path), repo_id)
            files[README].write_bytes(merge_readme(existing, local, repo_id, found=guessed).encode())
    stale = {name for name in remote.files if name in OURS or STALE_WEIGHTS.fullmatch(name)} - set(files)
    removed = [CommitOperationDelete(name) for name in sorted(stale)]
    return removed + [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]

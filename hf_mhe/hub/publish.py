"""`push_to_hub`: a model or a folder, with all its proofs, in one commit."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from hf_mhe._version import __version__
from hf_mhe.analysis import EnergyReport
from hf_mhe.analysis.checkpoint.file_names import listed
from hf_mhe.errors import MHEError
from hf_mhe.hub.bundle import Claims, claims_of_folder, save_for_hub, write_claims
from hf_mhe.hub.card import CardKeywords
from hf_mhe.hub.loader_files import left_out, published_files
from hf_mhe.hub.names import OURS, README, check_repo_id
from hf_mhe.hub.readme import BASE_MODEL, is_only_ours, merge_readme, read_readme
from hf_mhe.hub.remote import hub_errors
from hf_mhe.hub.staged import STALE_WEIGHTS
from hf_mhe.training import MHEConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedFile:
    """One file that a push would send: its path in the repository, and its size in bytes."""

    path: str
    size: int


@overload
def push_to_hub(
    model_or_folder: Any,
    repo_id: str,
    *,
    config: MHEConfig | None = ...,
    before: Any = ...,
    after: EnergyReport | None = ...,
    metrics: Mapping[str, float] | None = ...,
    metrics_before: Mapping[str, float] | None = ...,
    processor: Any = ...,
    private: bool | None = ...,
    revision: str | None = ...,
    create_pr: bool = ...,
    token: str | bool | None = ...,
    commit_message: str | None = ...,
    dry_run: Literal[False] = ...,
    **card: Unpack[CardKeywords],
) -> CommitInfo: ...


@overload
def push_to_hub(
    model_or_folder: Any,
    repo_id: str,
    *,
    config: MHEConfig | None = ...,
    before: Any = ...,
    after: EnergyReport | None = ...,
    metrics: Mapping[str, float] | None = ...,
    metrics_before: Mapping[str, float] | None = ...,
    processor: Any = ...,
    private: bool | None = ...,
    revision: str | None = ...,
    create_pr: bool = ...,
    token: str | bool | None = ...,
    commit_message: str | None = ...,
    dry_run: Literal[True],
    **card: Unpack[CardKeywords],
) -> list[PlannedFile]: ...


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
    dry_run: bool = False,
    **card: Unpack[CardKeywords],
) -> CommitInfo | list[PlannedFile]:
    """Publish a model with its MHE config, energy reports, figures and model card, all in one commit.

    Everything is checked and written to a temporary folder before the Hub is asked for anything. The repository is
    made if there is none, and so is a branch. A README that is there keeps its text, see `save_for_hub`. Files of an
    earlier push that would be wrong beside the new ones (weights in other shards, a comparison) go with the commit.

    Args:
        model_or_folder: a model with `save_pretrained`, or a folder that holds a saved one, which is left as it is.
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
        dry_run: do all but send: return the files that a push to an empty repository would send.

    Returns:
        What huggingface_hub tells of the commit; with `dry_run`, the list of files.

    Raises:
        MHEError: bad input, found before anything is sent; or the Hub refused or cannot be reached, in which case the
            repository's files are as they were (a repository that was made for this push is named).
    """
    check_repo_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise MHEError(f"create_pr opens a pull request against main; revision must be None then, got {revision!r}")
    is_folder = isinstance(model_or_folder, str | Path)
    if is_folder and not Path(model_or_folder).is_dir():
        raise MHEError(f"{str(model_or_folder)!r} is not a folder; give a model, or a folder that holds a saved one")
    if is_folder and processor is not None:
        raise MHEError("processor is for a model in memory; save it into the folder with processor.save_pretrained")
    with tempfile.TemporaryDirectory(prefix="hf_mhe-") as scratch:
        built = Path(scratch)
        files: dict[str, Path] = {}
        if is_folder:
            folder = Path(model_or_folder)
            given = Claims(config, before, after, metrics, metrics_before, repo_id, card)
            given.check()
            claims, comparison = claims_of_folder(folder, given)
            write_claims(folder, built, claims, comparison)
            kept = {path.relative_to(folder).as_posix(): path for path in published_files(folder)}
            files |= {name: path for name, path in kept.items() if name not in OURS}
        else:
            save_for_hub(
                model_or_folder,
                built,
                config=config,
                before=before,
                after=after,
                metrics=metrics,
                metrics_before=metrics_before,
                processor=processor,
                repo_id=repo_id,
                **card,
            )
        files |= {path.relative_to(built).as_posix(): path for path in built.rglob("*") if path.is_file()}
        if is_folder:
            _name_left_out(folder)
        if dry_run:
            return [PlannedFile(name, path.stat().st_size) for name, path in sorted(files.items())]
        api = HfApi(token=token, library_name="hf_mhe", library_version=__version__)
        message = commit_message or "Upload model with its hyperspherical energy report"
        guessed = BASE_MODEL if card.get("base_model") is None else frozenset()
        return _send(api, repo_id, files, guessed, private, revision, create_pr, message)


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


def _send(
    api: HfApi,
    repo_id: str,
    files: dict[str, Path],
    guessed: frozenset[str],
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    """Make repository and branch where needed, and the one commit; undo the branch when it fails."""
    with hub_errors("look at", repo_id):
        remote = _look(api, repo_id, revision)
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
            return _commit(api, repo_id, operations, remote, revision, create_pr, message)
    except MHEError as error:
        if remote.exists:
            raise
        raise MHEError(f"{error}; the new repository {url} was made and is empty") from error.__cause__


def _commit(
    api: HfApi,
    repo_id: str,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    remote: _Remote,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    """The one commit, on a branch that is made for it if need be, and removed again when the commit fails."""
    new_branch = None if remote.has_revision or revision == "main" else revision
    if new_branch is not None:
        api.create_branch(repo_id, branch=new_branch)
    try:
        # Not upload_folder: where Xet is at hand it sends a large folder in several commits.
        return api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
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

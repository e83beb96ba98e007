"""What huggingface_hub raises, as one clear line: each cause has its own remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The transport's base error (connection, timeout, protocol), under the name by which huggingface_hub imports it: which
# HTTP library stands behind it (httpx, httpx2) is its own affair and has changed between its versions.
from huggingface_hub.errors import HTTPError as TransportError

from hf_mhe.errors import MHEError
from hf_mhe.text import one_line

HUB_ERRORS = (HfHubHTTPError, TransportError, EntryNotFoundError, OfflineModeIsEnabled, LocalTokenNotFoundError)
"""What says that the Hub refused, could not be reached, or may not be asked."""
_LOG_IN = "pass token= or log in with `hf auth login`"


@contextmanager
def hub_errors(doing: str, repo_id: str, *, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into an `MHEError` that begins "cannot {doing} {repo_id}: ".

    Raises:
        MHEError: the Hub refused (401, 403, 404, 409, …), cannot be reached, or may not be asked (HF_HUB_OFFLINE).
    """
    try:
        yield
    except MHEError:  # a ValueError too, and clear already
        raise
    except HUB_ERRORS as error:
        raise MHEError(f"cannot {doing} {repo_id}: {hub_reason(error, repo_id, revision)}") from error
    except ValueError as error:  # how the client reports metadata that the Hub refuses, and a malformed answer
        raise MHEError(f"cannot {doing} {repo_id}: {one_line(error)}") from error
    except RuntimeError as error:
        # The client wraps what goes wrong while it uploads a large file, once per file.
        if not isinstance(error.__cause__, TransportError | OfflineModeIsEnabled):
            raise
        raise MHEError(f"cannot {doing} {repo_id}: {hub_reason(error.__cause__, repo_id, revision)}") from error


def unreadable_source(error: Exception, source: str, revision: str | None = None) -> str:
    """Why a name that is neither a file nor a folder here could not be read as a repository either."""
    reason = hub_reason(error, source, revision)
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return f"{source!r} is not a path that exists, and as a repository it is not in the cache: {reason}"
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return f"{source!r} is neither a path that exists nor a model repository on {constants.ENDPOINT}: {reason}"
    return f"repository {source} cannot be read: {reason}"


def hub_reason(error: BaseException, repo_id: str, revision: str | None = None) -> str:
    """What went wrong between here and the Hub, and what to do about it, in one line without the repository's name."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return hub_reason(error.__cause__, repo_id, revision)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids asking the Hub; unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return f"token=True, but no token is stored here; {_LOG_IN}"
    if isinstance(error, GatedRepoError):
        url = f"{constants.ENDPOINT}/{repo_id}"
        return f"the repository is gated (HTTP 403); ask for access at {url}, then {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        named = "such revision" if revision is None else f"revision {revision!r}"
        return f"there is no {named} (HTTP 404); give a branch, a tag or a commit hash"
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo_id)
    if isinstance(error, TransportError):
        return f"{constants.ENDPOINT} cannot be reached ({one_line(error)})"
    return one_line(error)


def _refusal(error: HfHubHTTPError, repo_id: str) -> str:
    """What the status of an answer means."""
    status = error.response.status_code
    if isinstance(error, DisabledRepoError):
        return f"the Hub has disabled this repository (HTTP {status})"
    if isinstance(error, EntryNotFoundError):
        return f"the repository has no such file (HTTP {status})"
    if status == 401 and isinstance(error, RepositoryNotFoundError):
        return f"no public repository has this name (HTTP 401); if it is private, {_LOG_IN}"
    if status == 401:
        return f"the Hub does not accept this token (HTTP 401); {_LOG_IN}"
    if status == 403:
        namespace = repo_id.split("/")[0]
        return f"this token does not permit it (HTTP 403); to write, use one with write permission for {namespace!r}"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            f"there is no such repository, or this token may not see it (HTTP {status}); if it is private, "
            "pass token= of an account that may"
        )
    if status in (409, 412):
        return f"the repository has changed or is busy (HTTP {status}); try again"
    kind = "bad request" if isinstance(error, BadRequestError) else "the Hub refused"
    return f"{kind} (HTTP {status}): {one_line(error.server_message or error)}"

"""What the local Hub keeps: content-addressed objects, commits and refs, in one folder that survives a restart."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

# What huggingface.co puts into a new repository, and what decides "lfs" or "regular" at preupload.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".npz", ".npy", ".parquet", ".zip")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LFS_THRESHOLD = 10 * 1024**2


class HubError(Exception):
    """A refusal, with the status and the `X-Error-Code` that the client turns into its own exception."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass(frozen=True)
class File:
    """One file of a commit: `oid` is the git blob id of what git would store, `sha256` names the content."""

    oid: str
    sha256: str
    size: int
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """A snapshot: its parent, who made it and when, and every file by path."""

    parent: str | None
    author: str
    title: str
    message: str
    date: str
    files: dict[str, File]

    @property
    def oid(self) -> str:
        """The id follows from the content, the parent and the time, as in git."""
        return hashlib.sha1(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass
class Repo:
    """A repository: refs such as `main` or `refs/pr/1`, and the commits they point into. `datasets/` before its name
    is what its id says of a data set, as in its address; a model has nothing there."""

    id: str
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The user and the name, which a model and a data set may share."""
        return self.id.removeprefix("datasets/")

    def resolve(self, revision: str) -> str:
        """Commit id of a branch, a pull request's ref or a full commit id; `HubError` 404 otherwise."""
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def history(self, revision: str) -> list[tuple[str, Commit]]:
        """The commits of a revision, newest first."""
        oid: str | None = self.resolve(revision)
        found = []
        while oid is not None:
            found.append((oid, self.commits[oid]))
            oid = self.commits[oid].parent
        return found


def git_blob_id(content: bytes) -> str:
    """What `git hash-object` prints for these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Store:
    """Repositories and objects under one folder; every change is made under one lock and written at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.objects = root / "objects"
        self.state = root / "repos"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, Repo] = {}
        for path in sorted(self.state.glob("*.json")):
            raw = json.loads(path.read_text(encoding="utf-8"))
            commits = {
                oid: Commit(**{**commit, "files": {name: File(**file) for name, file in commit["files"].items()}})
                for oid, commit in raw["commits"].items()
            }
            self.repos[raw["id"]] = Repo(raw["id"], raw["private"], raw["refs"], commits)

    # Objects

    def object_path(self, sha256: str) -> Path:
        """Where the bytes with this hash lie, whether or not they are there."""
        return self.objects / sha256

    def put_object(self, content: bytes) -> str:
        """Store bytes under their own sha256; returns it. A reader never sees half of an object."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.object_path(sha256).exists():
            handle, name = tempfile.mkstemp(dir=self.root)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(name, self.object_path(sha256))
        return sha256

    def regular_file(self, content: bytes) -> File:
        """Store a file that git itself would hold."""
        return File(git_blob_id(content), self.put_object(content), len(content), lfs=False)

    def lfs_file(self, sha256: str, size: int | None) -> File:
        """Refer to a large file that must have been uploaded before; `HubError` 400 when it was not."""
        path = self.object_path(sha256)
        if not path.is_file() or (size is not None and path.stat().st_size != size):
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        actual = path.stat().st_size
        return File(git_blob_id(lfs_pointer(sha256, actual)), sha256, actual, lfs=True)

    # Repositories

    def _save(self, repo: Repo) -> None:
        path = self.state / (repo.id.replace("/", "--") + ".json")
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(repo)), encoding="utf-8")
        os.replace(temporary, path)

    def create(self, repo_id: str, *, private: bool, author: str) -> Repo:
        """A new repository with the first commit that huggingface.co makes; 409 when there is one already."""
        with self.lock:
            if repo_id in self.repos:
                raise HubError(409, "You already created this repo")
            repo = Repo(repo_id, private)
            first = Commit(
                None, author, "initial commit", "", _now(), {".gitattributes": self.regular_file(GITATTRIBUTES)}
            )
            repo.commits[first.oid] = first
            repo.refs["main"] = first.oid
            self.repos[repo_id] = repo
            self._save(repo)
            return repo

    def delete(self, repo_id: str) -> None:
        """Forget a repository; its objects stay, since others may share them."""
        with self.lock:
            del self.repos[repo_id]
            (self.state / (repo_id.replace("/", "--") + ".json")).unlink()

    def create_branch(self, repo: Repo, branch: str, starting_point: str) -> None:
        """A branch at a revision; 409 when the name is taken."""
        with self.lock:
            if branch in repo.refs:
                raise HubError(409, f"Reference already exists: {branch}")
            repo.refs[branch] = repo.resolve(starting_point)
            self._save(repo)

    def delete_branch(self, repo: Repo, branch: str) -> None:
        """Remove a branch; `main` may not go."""
        with self.lock:
            if branch == "main":
                raise HubError(403, "Can't delete the main branch")
            if branch not in repo.refs:
                raise HubError(404, f"Reference does not exist: {branch}", "RevisionNotFound")
            del repo.refs[branch]
            self._save(repo)

    def commit(
        self,
        repo: Repo,
        revision: str,
        *,
        author: str,
        title: str,
        message: str,
        parent: str | None,
        added: dict[str, File],
        deleted_files: list[str],
        deleted_folders: list[str],
        create_pr: bool,
    ) -> tuple[str, int | None]:
        """One commit on a branch, or on a new pull request's ref; returns its id and the request's number.

        All or nothing: 404 for an unknown revision or a deleted file that is not there, 412 when `parent` is no
        longer the head, 400 when nothing would change.
        """
        with self.lock:
            head = repo.resolve(revision)
            if parent is not None and not create_pr and parent != head:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            base = repo.resolve(parent) if parent is not None else head
            if not create_pr and revision not in repo.refs:
                raise HubError(400, f"Cannot commit to {revision}: it is not a branch")
            files = dict(repo.commits[base].files)
            for path in deleted_files:
                if path not in files:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                del files[path]
            for folder in deleted_folders:
                prefix = folder.rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(prefix)}
            files.update(added)
            if files == repo.commits[base].files:
                raise HubError(400, "No files have been modified since last commit")
            commit = Commit(base, author, title, message, _now(), files)
            repo.commits[commit.oid] = commit
            number = None
            ref = revision
            if create_pr:
                number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
                ref = f"refs/pr/{number}"
            repo.refs[ref] = commit.oid
            self._save(repo)
            return commit.oid, number


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")

"""The endpoints under /api and the git-lfs batch: what each one takes and answers (huggingface_hub 1.x and 2.x)."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml

from tests.hub_server.store import LFS_SUFFIXES, LFS_THRESHOLD, Commit, File, HubError, Repo, lfs_pointer

if TYPE_CHECKING:
    from tests.hub_server.handler import HubHandler


def whoami(request: HubHandler) -> None:
    """The user of the token."""
    user = request.user()
    if user is None:
        raise HubError(401, "Invalid username or password.")
    orgs = [{"name": name} for name in request.hub.organizations if user in request.hub.organizations[name]]
    request.send_json(
        {"type": "user", "name": user, "orgs": orgs, "auth": {"accessToken": {"role": "write", "displayName": "t"}}}
    )


def create_repo(request: HubHandler) -> None:
    """A new repository of a model or a data set, in the user's own namespace or one of the user's organizations."""
    body, user = request.json_body(), request.user()
    if user is None:
        raise HubError(401, "Invalid username or password.")
    repo_id = _named(body, user)
    if user not in request.hub.members(repo_id):
        kind, namespace = body.get("type") or "model", repo_id.split("/")[-2]
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    private = body.get("visibility") == "private" or bool(body.get("private"))
    repo = request.hub.store.create(repo_id, private=private, author=user)
    request.send_json({"url": f"{request.hub.url}/{repo.id}", "name": repo.name, "id": repo.name})


def _named(body: dict[str, Any], user: str | None) -> str:
    """The repository that a body names, as the store calls it."""
    prefixes = {"model": "", "dataset": "datasets/"}
    kind = body.get("type") or "model"
    if kind not in prefixes:
        raise HubError(400, f"This Hub keeps models and data sets, not a {kind}")
    return f"{prefixes[kind]}{body.get('organization') or user}/{body['name']}"


def delete_repo(request: HubHandler) -> None:
    """Remove a repository."""
    body, user = request.json_body(), request.user()
    repo, _ = request.writer(_named(body, user))
    request.hub.store.delete(repo.id)
    request.send_json({})


def validate_yaml(request: HubHandler) -> None:
    """Whether a README's metadata block is one that the Hub would take."""
    content = request.json_body()["content"]
    parts = content.split("---\n", 2)
    warnings = (
        [] if content.startswith("---\n") and len(parts) == 3 else [{"message": "empty or missing yaml metadata"}]
    )
    errors = [] if warnings else [{"message": message} for message in _metadata_errors(parts[1])]
    request.send_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def _metadata_errors(text: str) -> list[str]:
    """The rules of huggingface.co that a model card's metadata is most often refused by."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"The metadata is not YAML: {error}"]
    if not isinstance(data, dict):
        return ["The metadata is not a mapping"]
    errors = [f'"{key}" must be a string' for key in ("library_name", "pipeline_tag") if not _text(data.get(key, ""))]
    for key in ("tags", "datasets", "metrics", "base_model"):
        values = data.get(key, [])
        if not all(_text(value) for value in (values if isinstance(values, list) else [values])):
            errors.append(f'"{key}" must be a string or a list of strings')
    for position, model in enumerate(data.get("model-index", [])):
        if not _text(model.get("name")):
            errors.append(f'"model-index[{position}].name" must be a string')
        for result in model.get("results", []):
            if not _text(result.get("task", {}).get("type")):
                errors.append(f'"model-index[{position}].results.task.type" must be a string')
            dataset = result.get("dataset", {})
            if not (_text(dataset.get("type")) and _text(dataset.get("name"))):
                errors.append(f'"model-index[{position}].results.dataset" needs a type and a name')
            for metric in result.get("metrics", []):
                if not _text(metric.get("type")) or metric.get("value") is None:
                    errors.append(f'"model-index[{position}].results.metrics" needs a type and a value')
    return errors


def _text(value: Any) -> bool:
    return isinstance(value, str)


# Reading


def _entry(path: str, file: File) -> dict[str, Any]:
    """A file as the tree and paths-info endpoints tell it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.lfs:
        pointer_size = len(lfs_pointer(file.sha256, file.size))
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_size}
    return entry


def _card_data(request: HubHandler, commit: Commit) -> dict[str, Any] | None:
    readme = commit.files.get("README.md")
    if readme is None:
        return None
    parts = request.hub.store.object_path(readme.sha256).read_text("utf-8", errors="replace").split("---\n", 2)
    return yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None


def repo_info(request: HubHandler, repo: str, revision: str | None) -> None:
    """What a repository holds at a revision, `main` by default."""
    found = request.readable(repo)
    oid = found.resolve(revision or "main")
    commit = found.commits[oid]
    card = _card_data(request, commit) or {}
    siblings = []
    for path, file in sorted(commit.files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if request.query.get("blobs"):
            entry = _entry(path, file)
            sibling |= {"size": file.size, "blobId": file.oid}
            if file.lfs:
                sibling["lfs"] = {**entry["lfs"], "sha256": file.sha256}
        siblings.append(sibling)
    info = {
        "id": found.name,
        "modelId": found.name,
        "author": found.name.split("/")[0],
        "sha": oid,
        "private": found.private,
        "gated": False,
        "disabled": False,
        "lastModified": commit.date,
        "tags": card.get("tags", []),
        "siblings": siblings,
    }
    if card:
        info |= {"cardData": card, **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card}}
    request.send_json(info, headers={"X-Repo-Commit": oid})


def tree(request: HubHandler, repo: str, revision: str, path: str | None) -> None:
    """The files and folders below a folder; everything below when `recursive`."""
    found = request.readable(repo)
    oid = found.resolve(revision)
    files = found.commits[oid].files
    prefix = f"{path.rstrip('/')}/" if path else ""
    inside = {name: file for name, file in files.items() if name.startswith(prefix)}
    if not inside:
        raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", oid)
    recursive = request.query.get("recursive", "").lower() in ("1", "true")
    entries, folders = [], set()
    for name, file in sorted(inside.items()):
        parts = name[len(prefix) :].split("/")
        folders.update(prefix + "/".join(parts[:depth]) for depth in range(1, len(parts) if recursive else 2))
        if recursive or len(parts) == 1:
            entries.append(_entry(name, file))
    folders -= set(inside)
    found_folders = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
    request.send_json(found_folders + entries, headers={"X-Repo-Commit": oid})


def paths_info(request: HubHandler, repo: str, revision: str) -> None:
    """The named files and folders; those that are not there are left out."""
    files = _head(request.readable(repo), revision).files
    entries = []
    for path in parse_qs(request.body.decode()).get("paths", []):
        if path in files:
            entries.append(_entry(path, files[path]))
        elif any(name.startswith(path.rstrip("/") + "/") for name in files):
            entries.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
    request.send_json(entries)


def _head(repo: Repo, revision: str) -> Commit:
    return repo.commits[repo.resolve(revision)]


def refs(request: HubHandler, repo: str) -> None:
    """Branches, and pull requests when asked."""
    known = request.readable(repo).refs
    answer: dict[str, Any] = {"converts": [], "tags": []}
    answer["branches"] = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
        for name, oid in known.items()
        if not name.startswith("refs/")
    ]
    if "include_prs" in request.query:
        answer["pullRequests"] = [
            {"name": name, "ref": name, "targetCommit": oid}
            for name, oid in known.items()
            if name.startswith("refs/pr/")
        ]
    request.send_json(answer)


def commits(request: HubHandler, repo: str, revision: str) -> None:
    """The history of a revision, newest first."""
    history = request.readable(repo).history(revision)
    request.send_json(
        [
            {
                "id": oid,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for oid, commit in history
        ]
    )


# Writing


def create_branch(request: HubHandler, repo: str, branch: str) -> None:
    """A branch at the head of `main` or at the given starting point."""
    found, _ = request.writer(repo)
    request.hub.store.create_branch(found, branch, request.json_body().get("startingPoint") or "main")
    request.send_json({})


def delete_branch(request: HubHandler, repo: str, branch: str) -> None:
    """Remove a branch."""
    found, _ = request.writer(repo)
    request.hub.store.delete_branch(found, branch)
    request.send_json({})


def preupload(request: HubHandler, repo: str, revision: str) -> None:
    """How each file is to be sent, and the id of what is there now: the client leaves out what is unchanged."""
    found, _ = request.writer(repo, pull_request="create_pr" in request.query)
    present = _head(found, revision).files
    answer = []
    for file in request.json_body()["files"]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        large = path.endswith(LFS_SUFFIXES) or file["size"] > LFS_THRESHOLD or b"\0" in sample
        old = present.get(path)
        oid = None if old is None else (old.sha256 if old.lfs else old.oid)
        answer.append(
            {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            | ({} if oid is None else {"oid": oid})
        )
    request.send_json({"files": answer})


def lfs_batch(request: HubHandler, repo: str) -> None:
    """Where to put each large object; no action for what is stored already."""
    request.writer(repo, pull_request=True)
    objects = []
    for item in request.json_body()["objects"]:
        answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
        if not request.hub.store.object_path(item["oid"]).is_file():
            verify = f"{request.hub.url}/{repo}.git/info/lfs/objects/verify"
            upload = request.hub.storage_url + request.signed_path(item["oid"], "write")
            answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        objects.append(answer)
    request.send_json({"transfer": "basic", "objects": objects})


def lfs_verify(request: HubHandler, repo: str) -> None:
    """Whether an object arrived whole."""
    request.writer(repo, pull_request=True)
    body = request.json_body()
    request.hub.store.lfs_file(body["oid"], body["size"])
    request.send_json({})


def commit(request: HubHandler, repo: str, revision: str) -> None:
    """One commit from newline-delimited JSON: a header, then one line per operation."""
    create_pr = "create_pr" in request.query
    found, user = request.writer(repo, pull_request=create_pr)
    store = request.hub.store
    header: dict[str, Any] = {}
    added: dict[str, File] = {}
    deleted_files, deleted_folders = [], []
    for line in request.body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        if operation["key"] == "header":
            header = value
        elif operation["key"] == "file":
            added[value["path"]] = store.regular_file(base64.b64decode(value["content"], validate=True))
        elif operation["key"] == "lfsFile":
            added[value["path"]] = store.lfs_file(value["oid"], value.get("size"))
        elif operation["key"] == "deletedFile":
            deleted_files.append(value["path"])
        elif operation["key"] == "deletedFolder":
            deleted_folders.append(value["path"])
        else:
            raise HubError(400, f"Unknown operation {operation['key']}")
    if not header.get("summary"):
        raise HubError(400, "A commit needs a summary")
    oid, number = store.commit(
        found,
        revision,
        author=user,
        title=header["summary"],
        message=header.get("description", ""),
        parent=header.get("parentCommit"),
        added=added,
        deleted_files=deleted_files,
        deleted_folders=deleted_folders,
        create_pr=create_pr,
    )
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{request.hub.url}/{repo}/commit/{oid}"}
    if number is not None:
        answer["pullRequestUrl"] = f"{request.hub.url}/{repo}/discussions/{number}"
    request.send_json(answer)

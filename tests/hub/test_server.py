"""The local Hub, spoken to by the unpatched huggingface_hub client in clean subprocesses."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer


class Redirect(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to another origin without the token, as every HTTP client but urllib does."""

    def redirect_request(self, request, *rest):  # type: ignore[no-untyped-def]
        new = super().redirect_request(request, *rest)
        if new is not None and new.host != request.host:
            new.remove_header("Authorization")
        return new


PRELUDE = """
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError,
                                    RevisionNotFoundError)
api = HfApi()
def add(path, content):
    return CommitOperationAdd(path, content)
def status(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except HfHubHTTPError as error:
        return [type(error).__name__, error.response.status_code]
    return ["no error", 200]
"""


def client(hub: HubServer, home: Path, code: str, *, token: str | None = HubServer.token) -> dict[str, Any]:
    """What the code leaves in `out`, run with the real client."""
    return hub.call(PRELUDE + textwrap.dedent(code), home, token=token)


def test_commit_round_trip(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, what the client uploads is not what it downloads, or its ids are not those of git and sha256."""
    out = client(
        hub,
        tmp_path,
        """
        api.create_repo("alice/trip")
        big = bytes(range(256)) * 1000
        info = api.create_commit("alice/trip", [add("model.safetensors", big), add("a/b/text.txt", b"hello"),
                                                add("empty.txt", b"")], commit_message="one", commit_description="two")
        out["oid"] = info.oid
        folder = Path(snapshot_download("alice/trip"))
        out["same"] = (folder / "model.safetensors").read_bytes() == big
        out["text"] = (folder / "a/b/text.txt").read_text()
        out["empty"] = (folder / "empty.txt").stat().st_size
        model = api.model_info("alice/trip", files_metadata=True)
        out["sha"] = model.sha
        out["siblings"] = sorted(file.rfilename for file in model.siblings)
        out["lfs"] = [file.lfs.sha256 for file in model.siblings if file.lfs]
        entries = api.list_repo_tree("alice/trip", recursive=True)
        out["tree"] = {entry.path: getattr(entry, "blob_id", None) for entry in entries}
        out["top"] = sorted(entry.path for entry in api.list_repo_tree("alice/trip"))
        out["paths"] = [entry.path for entry in api.get_paths_info("alice/trip", ["a/b/text.txt", "a", "none"])]
        out["log"] = [[c.title, c.message, c.authors] for c in api.list_repo_commits("alice/trip")]
        """,
    )
    assert out["same"]
    assert out["text"] == "hello"
    assert out["empty"] == 0
    assert out["sha"] == out["oid"]
    assert out["siblings"] == [".gitattributes", "a/b/text.txt", "empty.txt", "model.safetensors"]
    assert out["lfs"] == [hashlib.sha256(bytes(range(256)) * 1000).hexdigest()]
    assert out["tree"]["a/b/text.txt"] == hashlib.sha1(b"blob 5\0hello").hexdigest()
    assert {"a", "a/b"} <= set(out["tree"])
    assert out["top"] == [".gitattributes", "a", "empty.txt", "model.safetensors"]
    assert sorted(out["paths"]) == ["a", "a/b/text.txt"]
    assert out["log"] == [["one", "two", ["alice"]], ["initial commit", "", ["alice"]]]
    assert len(hub.requests("POST", "/commit/")) == 1
    assert [entry.status for entry in hub.requests("PUT", "/lfs-storage/")] == [200]


def test_second_commit_sends_only_what_changed(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, unchanged large files are uploaded again, or deletions and no-op commits are wrong."""
    out = client(
        hub,
        tmp_path,
        """
        api.create_repo("alice/twice")
        big = b"x" * 5000 + bytes(1)
        api.create_commit("alice/twice", [add("w.safetensors", big), add("t.txt", b"1"), add("old/x.txt", b"1")],
                          commit_message="1")
        second = api.create_commit("alice/twice", [add("w.safetensors", big), add("t.txt", b"2"),
                                   CommitOperationDelete("old/", is_folder=True)], commit_message="2")
        nothing = api.create_commit("alice/twice", [add("w.safetensors", big), add("t.txt", b"2")], commit_message="3")
        out["same"] = nothing.oid == second.oid
        out["files"] = api.list_repo_files("alice/twice")
        out["gone"] = status(api.create_commit, "alice/twice", [CommitOperationDelete("nope.txt")], commit_message="4")
        first = api.list_repo_commits("alice/twice")[1].commit_id
        out["old"] = Path(hf_hub_download("alice/twice", "t.txt", revision=first)).read_text()
        out["stale"] = status(api.create_commit, "alice/twice", [add("t.txt", b"5")], commit_message="5",
                              parent_commit=first)
        """,
    )
    assert out["same"]
    assert sorted(out["files"]) == [".gitattributes", "t.txt", "w.safetensors"]
    assert out["gone"] == ["RemoteEntryNotFoundError", 404]
    assert out["old"] == "1"
    assert out["stale"] == ["HfHubHTTPError", 412]
    assert len(hub.requests("PUT", "/lfs-storage/")) == 1


def test_branches_and_pull_requests(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a commit lands on another ref than the one that was named, or a pull request changes main."""
    out = client(
        hub,
        tmp_path,
        """
        api.create_repo("alice/refs")
        before = api.model_info("alice/refs").sha
        api.create_branch("alice/refs", branch="v1")
        api.create_commit("alice/refs", [add("t.txt", b"v1")], commit_message="v1", revision="v1")
        request = api.create_commit("alice/refs", [add("t.txt", b"pr")], commit_message="pr", create_pr=True)
        out["pr"] = [request.pr_num, request.pr_revision]
        out["main"] = api.model_info("alice/refs").sha == before
        out["v1"] = Path(hf_hub_download("alice/refs", "t.txt", revision="v1")).read_text()
        out["text"] = Path(hf_hub_download("alice/refs", "t.txt", revision="refs/pr/1")).read_text()
        refs = api.list_repo_refs("alice/refs", include_pull_requests=True)
        out["refs"] = [[r.ref for r in refs.branches], [r.ref for r in refs.pull_requests]]
        more = [add("t.txt", b"?")]
        out["missing"] = status(api.create_commit, "alice/refs", more, commit_message="x", revision="no")
        out["twice"] = status(api.create_branch, "alice/refs", branch="v1")
        """,
    )
    assert out["pr"] == [1, "refs/pr/1"]
    assert out["main"]
    assert out["v1"] == "v1"
    assert out["text"] == "pr"
    assert out["refs"] == [["refs/heads/main", "refs/heads/v1"], ["refs/pr/1"]]
    assert out["missing"] == ["RevisionNotFoundError", 404]
    assert out["twice"] == ["HfHubHTTPError", 409]


@pytest.mark.slow
def test_errors_are_those_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, code that is tested here meets other exceptions on huggingface.co."""
    code = """
    out["who"] = status(api.whoami)
    out["no repo"] = status(api.model_info, "alice/nothing")
    out["no file"] = status(hf_hub_download, "alice/errors", "nothing.txt")
    out["no revision"] = status(hf_hub_download, "alice/errors", "t.txt", revision="nothing")
    out["private"] = status(api.model_info, "alice/secret")
    out["write"] = status(api.create_commit, "alice/errors", [add("t.txt", b"2")], commit_message="2")
    out["namespace"] = status(api.create_repo, "alice/more")
    out["again"] = status(api.create_repo, "alice/errors")
    """
    owner = client(
        hub,
        tmp_path / "alice",
        """
        api.create_repo("alice/errors")
        api.create_repo("alice/secret", private=True)
        api.create_commit("alice/errors", [add("t.txt", b"1")], commit_message="1")
        out["user"] = api.whoami()["name"]
        out["org"] = api.create_repo("spread/model").repo_id
        out["seen"] = api.model_info("alice/secret").private
        out["again"] = status(api.create_repo, "alice/errors")
        """,
    )
    assert owner == {"user": "alice", "org": "spread/model", "seen": True, "again": ["HfHubHTTPError", 409]}
    repo, revision, entry = "RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"
    public = {"no file": [entry, 404], "no revision": [revision, 404]}
    stranger = client(hub, tmp_path / "bob", code, token=hub.other_token)
    forbidden = ["HfHubHTTPError", 403]
    assert stranger == public | {
        "who": ["no error", 200],
        "no repo": [repo, 404],
        "private": [repo, 404],
        "write": forbidden,
        "namespace": forbidden,
        "again": forbidden,
    }
    expired = client(hub, tmp_path / "expired", code, token="hf_nobody")
    assert expired == {name: ["HfHubHTTPError", 401] for name in stranger}


def test_ranges_and_signed_storage(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a reader of safetensors headers gets other bytes than it asked for, or a private file leaks."""
    content = bytes(range(256)) * 4
    client(
        hub,
        tmp_path,
        f"""
        api.create_repo("alice/range", private=True)
        api.create_commit("alice/range", [add("w.safetensors", bytes.fromhex("{content.hex()}"))], commit_message="1")
        """,
    )
    url = f"{hub.url}/alice/range/resolve/main/w.safetensors"

    def get(address: str, **headers: str) -> tuple[int, bytes]:
        try:
            with urllib.request.build_opener(Redirect).open(
                urllib.request.Request(address, headers=headers)
            ) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    auth = {"Authorization": f"Bearer {hub.token}"}
    assert get(url, **auth) == (200, content)
    assert get(url, Range="bytes=8-15", **auth) == (206, content[8:16])
    assert get(url, Range="bytes=1000-", **auth) == (206, content[1000:])
    assert get(url, Range="bytes=-3", **auth) == (206, content[-3:])
    assert get(url, Range="bytes=1020-9999", **auth) == (206, content[1020:])
    assert get(url, Range="bytes=5000-", **auth)[0] == 416
    assert get(url)[0] == 401
    assert get(f"{hub.url}/lfs-storage/{hashlib.sha256(content).hexdigest()}")[0] == 403


def test_corrupt_upload_is_refused(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, bytes that do not hash to the announced name would be published under it."""
    client(hub, tmp_path, 'api.create_repo("alice/corrupt")')
    sha256 = hashlib.sha256(b"true").hexdigest()
    batch = json.dumps({"operation": "upload", "objects": [{"oid": sha256, "size": 4}]}).encode()
    auth = {"Authorization": f"Bearer {hub.token}"}
    address = f"{hub.url}/alice/corrupt.git/info/lfs/objects/batch"
    with urllib.request.urlopen(urllib.request.Request(address, batch, auth)) as response:
        href = json.load(response)["objects"][0]["actions"]["upload"]["href"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(href, b"fake", method="PUT"))
    assert not hub.store.object_path(sha256).exists()


def test_restart_keeps_everything(tmp_path: Path) -> None:
    """If this fails, a Hub that is started by hand on a folder forgets what was pushed to it."""
    with HubServer(tmp_path / "root") as first:
        made = client(
            first,
            tmp_path / "home",
            """
            api.create_repo("alice/kept", private=True)
            api.create_commit("alice/kept", [add("w.safetensors", b"1234"), add("t.txt", b"t")], commit_message="1")
            info = api.model_info("alice/kept", files_metadata=True)
            out = [info.sha, info.private, sorted((f.rfilename, f.size, f.blob_id) for f in info.siblings)]
            """,
        )
    command = [sys.executable, "-u", "-m", "tests.hub_server", "--root", str(tmp_path / "root")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2]
    ) as second:
        try:
            assert second.stdout is not None
            url = second.stdout.readline().split("HF_ENDPOINT=")[1].split()[0]
            request = urllib.request.Request(
                f"{url}/api/models/alice/kept?blobs=1", headers={"Authorization": f"Bearer {HubServer.token}"}
            )
            with urllib.request.urlopen(request) as response:
                info = json.load(response)
        finally:
            second.terminate()
    files = sorted([file["rfilename"], file["size"], file["blobId"]] for file in info["siblings"])
    assert [info["sha"], info["private"], files] == made


def test_a_data_set_lies_beside_a_model_of_its_name(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, rows would be downloaded from a model's repository, or anyone could write to another's."""
    out = client(
        hub,
        tmp_path,
        """
        name = "alice/both"
        for kind, content in (("model", b"weights"), ("dataset", b"rows" * 1000)):
            api.create_repo(name, repo_type=kind)
            for path in ("x.parquet", "folder/x.txt"):  # by git-lfs, and by git
                api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=name, repo_type=kind)
            files = {path: Path(hf_hub_download(name, path, repo_type=kind)).read_bytes() == content
                     for path in api.list_repo_files(name, repo_type=kind) if path.endswith(("x.parquet", "x.txt"))}
            commits = api.list_repo_commits(name, repo_type=kind)
            out[kind] = [files, api.repo_info(name, repo_type=kind).id, len(commits)]
        bob = HfApi(token="hf_bob")
        upload = dict(path_or_fileobj=b"", path_in_repo="y", repo_id=name, repo_type="dataset")
        out["bob"] = [status(bob.upload_file, **upload), status(bob.create_repo, "alice/new", repo_type="dataset")]
        out["space"] = status(api.create_repo, "alice/space", repo_type="space", space_sdk="static")
        api.delete_repo(name, repo_type="dataset")
        out["left"] = [api.repo_exists(name, repo_type=kind) for kind in ("model", "dataset")]
        """,
    )
    files = {"x.parquet": True, "folder/x.txt": True}
    assert out["model"] == out["dataset"] == [files, "alice/both", 3]
    assert out["bob"] == [["HfHubHTTPError", 403]] * 2
    assert out["space"] == ["BadRequestError", 400]
    assert out["left"] == [True, False]

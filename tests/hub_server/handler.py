"""HTTP in and out: reads a request, finds its route, answers as huggingface.co does."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_server import api
from tests.hub_server.store import File, HubError, Repo

if TYPE_CHECKING:
    from tests.hub_server.server import HubServer

NAME = r"[\w.-]+/[\w.-]+"
REPO = rf"(?P<repo>(?:datasets/)?{NAME})"  # as it is called in URLs and in the store: a model has no prefix
API = rf"/api/(?P<repo>(?:models|datasets)/{NAME})"
# The path is matched before percent-decoding: "refs%2Fpr%2F1" is one revision, "refs/pr/1" would be three segments.
ROUTES = [
    ("GET", re.compile(r"/api/whoami-v2"), api.whoami),
    ("POST", re.compile(r"/api/repos/create"), api.create_repo),
    ("DELETE", re.compile(r"/api/repos/delete"), api.delete_repo),
    ("POST", re.compile(r"/api/validate-yaml"), api.validate_yaml),
    ("POST", re.compile(API + r"/preupload/(?P<revision>[^/]+)"), api.preupload),
    ("POST", re.compile(API + r"/commit/(?P<revision>[^/]+)"), api.commit),
    ("POST", re.compile(API + r"/paths-info/(?P<revision>[^/]+)"), api.paths_info),
    ("POST", re.compile(API + r"/branch/(?P<branch>[^/]+)"), api.create_branch),
    ("DELETE", re.compile(API + r"/branch/(?P<branch>[^/]+)"), api.delete_branch),
    ("GET", re.compile(API + r"/refs"), api.refs),
    ("GET", re.compile(API + r"/commits/(?P<revision>[^/]+)"), api.commits),
    ("GET", re.compile(API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?"), api.tree),
    ("GET", re.compile(API + r"(?:/revision/(?P<revision>[^/]+))?"), api.repo_info),
    ("POST", re.compile(rf"/{REPO}\.git/info/lfs/objects/batch"), api.lfs_batch),
    ("POST", re.compile(rf"/{REPO}\.git/info/lfs/objects/verify"), api.lfs_verify),
]
RESOLVE = re.compile(rf"/{REPO}/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
STORAGE = re.compile(r"/lfs-storage/(?P<sha256>[0-9a-f]{64})")
LINK_SECONDS = 3600
CHUNK = 1 << 20


class HubHandler(BaseHTTPRequestHandler):
    """One connection of one client; `server.hub` is the Hub that it talks to."""

    protocol_version = "HTTP/1.1"
    hub: HubServer  # set on the subclass that `HubServer` makes for itself

    # Requests

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """`HubServer.log` is the log; nothing goes to stderr."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        # The body is read whatever the answer is: with keep-alive an unread one would be taken for the next request.
        self.body = self._read_body()
        self._sent: tuple[int, int] | None = None
        try:
            self.hub.check_planned_failure(self.command, url.path)
            self._dispatch(url.path)
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            if error.commit:
                headers["X-Repo-Commit"] = error.commit
            self.send_json({"error": error.message}, error.status, headers)
        if self._sent is None:
            raise RuntimeError(f"no answer was sent to {self.command} {self.path}")
        self.hub.record(self.command, unquote(url.path), *self._sent, self.headers.get("Range"))

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _dispatch(self, path: str) -> None:
        if match := STORAGE.fullmatch(path):
            if "Authorization" in self.headers:
                raise HubError(400, "Only one auth mechanism allowed: a signed link takes no token")
            if self.command == "PUT":
                self._store_object(match["sha256"])
            else:
                self._check_signature(match["sha256"], "read")
                self._send_object(match["sha256"], {"ETag": f'"{match["sha256"]}"'})
            return
        for method, pattern, route in ROUTES:
            if method == self.command and (match := pattern.fullmatch(path)):
                values = {key: None if text is None else unquote(text) for key, text in match.groupdict().items()}
                if repo := values.get("repo"):
                    values["repo"] = repo.removeprefix("models/")
                route(self, **values)
                return
        if self.command in ("GET", "HEAD") and (match := RESOLVE.fullmatch(path)):
            self._resolve(unquote(match["repo"]), unquote(match["revision"]), unquote(match["path"]))
            return
        raise HubError(404, f"This Hub has no {self.command} {path}")

    def json_body(self) -> dict[str, Any]:
        """The body as a JSON object; `HubError` 400 when it is none."""
        try:
            parsed = json.loads(self.body)
        except ValueError as error:
            raise HubError(400, f"The body is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise HubError(400, "The body is not a JSON object")
        return parsed

    # Who is asking

    def user(self) -> str | None:
        """The user of the token; None without a token; `HubError` 401 for a token that nobody has."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def readable(self, repo_id: str) -> Repo:
        """A repository that the client may see. As on huggingface.co a private one looks like one that is not there,
        and both are 401 without a token, 404 with one."""
        user = self.user()
        repo = self.hub.store.repos.get(repo_id)
        if repo is None or (repo.private and user not in self.hub.members(repo_id)):
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def writer(self, repo_id: str, *, pull_request: bool = False) -> tuple[Repo, str]:
        """A repository and the user who may write to it; anyone with a token may open a pull request."""
        repo, user = self.readable(repo_id), self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user not in self.hub.members(repo_id) and not pull_request:
            raise HubError(403, f"You don't have the rights to write to {repo_id}")
        return repo, user

    # Answers

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send a value as JSON (no body to a HEAD, whose length is still told)."""
        body = json.dumps(value, default=str).encode()  # metadata may hold a date
        self._send(status, body, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self._sent = (status, 0 if self.command == "HEAD" else len(body))

    # Files

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        """A file of a revision: small ones from here, large ones by a redirect to signed storage, as on the Hub."""
        repo = self.readable(repo_id)
        oid = repo.resolve(revision)
        file: File | None = repo.commits[oid].files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", oid)
        common = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if not file.lfs:
            self._send_object(file.sha256, {**common, "ETag": f'"{file.oid}"'})
            return
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"', "ETag": f'"{file.oid}"'}
        location = self.hub.storage_url + self.signed_path(file.sha256, "read")
        self._send(302, b"", {**common, **linked, "Location": location})

    def _send_object(self, sha256: str, headers: dict[str, str]) -> None:
        """Stored bytes: all of them, or the one range that was asked for (RFC 9110, section 14)."""
        path = self.hub.store.object_path(sha256)
        if not path.is_file():
            raise HubError(404, f"No object {sha256}")
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            status = 206
            if asked[1]:
                first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
            else:
                first = max(0, size - int(asked[2] or 0))
            if first >= size or last < first:
                self._send(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
                return
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        length = last - first + 1
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self._sent = (status, 0 if self.command == "HEAD" else length)
        if self.command == "HEAD":
            return
        with path.open("rb") as source:
            source.seek(first)
            while length > 0:
                chunk = source.read(min(CHUNK, length))
                self.wfile.write(chunk)
                length -= len(chunk)

    def _store_object(self, sha256: str) -> None:
        """Take an upload; the bytes must hash to the name that the client announced."""
        self._check_signature(sha256, "write")
        actual = hashlib.sha256(self.body).hexdigest()
        if actual != sha256:
            raise HubError(400, f"The bytes hash to {actual}, announced was {sha256}")
        self.hub.store.put_object(self.body)
        self._send(200, b"", {"ETag": f'"{sha256}"'})

    # Signed links: storage knows no tokens, so that whoever holds a link may use it, for an hour.

    def signed_path(self, sha256: str, use: str) -> str:
        """The path of an object in storage with the right to read or write it."""
        expires = int(time.time()) + LINK_SECONDS
        return f"/lfs-storage/{sha256}?expires={expires}&signature={self._signature(sha256, use, expires)}"

    def _signature(self, sha256: str, use: str, expires: int) -> str:
        return hmac.new(self.hub.secret, f"{use} {sha256} {expires}".encode(), hashlib.sha256).hexdigest()

    def _check_signature(self, sha256: str, use: str) -> None:
        expires = int(self.query.get("expires", 0))
        expected = self._signature(sha256, use, expires)
        if expires < time.time() or not hmac.compare_digest(self.query.get("signature", ""), expected):
            raise HubError(403, "The link is not signed, or has expired")

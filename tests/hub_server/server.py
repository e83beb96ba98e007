"""The running Hub: its thread, its users, its request log, and clean subprocesses that use it."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.hub_server.handler import HubHandler
from tests.hub_server.store import HubError, Store

ALICE, BOB = "hf_alice", "hf_bob"  # the tokens of two users who may not write to each other's repositories

_MARK = "=== out ==="


@dataclass(frozen=True)
class LoggedRequest:
    """One request that was answered: percent-decoded path without query, status, bytes of the answer's body."""

    method: str
    path: str
    status: int
    sent: int
    range: str | None


class HubServer:
    """A Hub on 127.0.0.1; use as a context manager, or `start()` and `stop()`.

    `root` keeps everything, so that a second server on the same folder goes on where the first stopped.
    """

    token = ALICE
    other_token = BOB

    def __init__(self, root: Path, port: int = 0) -> None:
        self.store = Store(Path(root))
        self.users = {ALICE: "alice", BOB: "bob"}
        self.organizations = {"spread": {"alice"}}
        self.secret = secrets.token_bytes(32)
        self.log: list[LoggedRequest] = []
        self._planned: list[tuple[str, re.Pattern[str], int]] = []
        self._lock = threading.Lock()
        handler = type("Handler", (HubHandler,), {"hub": self})
        # Large files lie on another origin, as on huggingface.co: the client takes their metadata from the redirect
        # to it, and must not send its token there.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", number), handler) for number in (port, 0)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            for server in self._servers
        ]

    def start(self) -> HubServer:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Stop answering and free the ports."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def members(self, repo_id: str) -> set[str]:
        """The users who may write to a repository, and see it when it is private."""
        namespace = repo_id.split("/")[-2]
        return self.organizations.get(namespace, {namespace})

    # What tests ask of it

    def record(self, method: str, path: str, status: int, sent: int, range: str | None) -> None:
        """Add to the log."""
        with self._lock:
            self.log.append(LoggedRequest(method, path, status, sent, range))

    def requests(self, method: str, pattern: str) -> list[LoggedRequest]:
        """The logged requests of a method ("*": any) whose path contains the regular expression, oldest first."""
        with self._lock:
            return [entry for entry in self.log if method in ("*", entry.method) and re.search(pattern, entry.path)]

    def fail_once(self, method: str, pattern: str, status: int) -> None:
        """Answer the next request that matches with this status, before anything is done about it."""
        with self._lock:
            self._planned.append((method, re.compile(pattern), status))

    def check_planned_failure(self, method: str, path: str) -> None:
        """Raise the `HubError` that a test planned for this request, once."""
        with self._lock:
            for planned in self._planned:
                if planned[0] == method and planned[1].search(path):
                    self._planned.remove(planned)
                    raise HubError(planned[2], f"planned failure {planned[2]}")

    def env(self, home: Path, *, token: str | None = ALICE) -> dict[str, str]:
        """The environment of a process that knows this Hub only: no cache but `home`, no other token, no Xet."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS"))
        }
        root = Path(__file__).resolve().parents[2]
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), kept.get("PYTHONPATH", "")]))
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return {**kept, **settings, **({} if token is None else {"HF_TOKEN": token})}

    def run(
        self,
        arguments: Sequence[str],
        home: Path,
        *,
        token: str | None = ALICE,
        check: bool = True,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` against this Hub in `env(home)`, or in the environment given.

        Raises:
            AssertionError: it failed and `check` is set; the message carries its stderr.
        """
        result = subprocess.run(
            [sys.executable, *arguments],
            env=environment or self.env(home, token=token),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and result.returncode != 0:
            raise AssertionError(f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def call(self, code: str, home: Path, *, token: str | None = ALICE, **values: object) -> dict[str, Any]:
        """Run Python code against this Hub; it finds `values` as variables and leaves its findings in the dict `out`.

        Raises:
            AssertionError: the code failed; the message carries its stderr.
        """
        given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        script = f"import json\nout = {{}}\n{given}{textwrap.dedent(code)}\nprint({_MARK!r} + json.dumps(out))"
        printed = self.run(["-c", script], home, token=token).stdout
        found: dict[str, Any] = json.loads(printed.split(_MARK, 1)[1])
        return found

"""`hf-mhe push` against a local Hub: what would be sent, what was sent, and what a user without rights is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_server import HubServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, as `save_pretrained` leaves it."""
    from hf_mhe.quickstart.model import build_model

    path = tmp_path_factory.mktemp("push") / "model"
    build_model(0).save_pretrained(path)
    return path


def push(hub: HubServer, home: Path, *arguments: str | Path, **settings: object) -> tuple[int, str, str]:
    """Run `hf-mhe push`; its status, stdout and stderr."""
    done = hub.run(["-m", "hf_mhe.cli", "push", *map(str, arguments)], home, check=False, **settings)  # type: ignore
    return done.returncode, done.stdout, done.stderr


@pytest.mark.story
def test_a_push_publishes_what_a_dry_run_lists(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """Else looking at what would be published would publish it, or show something else."""
    status, stdout, stderr = push(hub, tmp_path, folder, "alice/pushed", "--dry-run")
    assert status == 0, stderr
    listed = {line.split()[1]: int(line.split()[0]) for line in stdout.splitlines()[:-1]}
    assert listed["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert {"config.json", "README.md", "energy_report.json"} <= listed.keys()
    assert f"{sum(listed.values())} bytes in {len(listed)} files" in stdout
    assert hub.log == []  # nobody was asked or told anything
    status, stdout, stderr = push(hub, tmp_path, folder, "alice/pushed", "--private", "--commit-message", "First")
    assert status == 0, stderr
    assert stdout.startswith(f"{hub.url}/alice/pushed/commit/")
    code = """
        from huggingface_hub import HfApi
        info = HfApi().model_info(repo)
        out["files"] = sorted(s.rfilename for s in info.siblings)
        out["private"] = info.private
        out["titles"] = [commit.title for commit in HfApi().list_repo_commits(repo)]
    """
    found = hub.call(code, tmp_path, repo="alice/pushed")
    assert set(found["files"]) - {".gitattributes"} == listed.keys()
    assert found["private"] is True
    assert found["titles"][0] == "First"


@pytest.mark.story
def test_a_stranger_may_not_push(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """Else a missing right would be a stack trace of HTTP."""
    status, stdout, stderr = push(hub, tmp_path, folder, "alice/pushed", token=hub.other_token)
    assert (status, stdout, len(stderr.splitlines())) == (2, "", 1), stderr
    assert stderr.startswith("hf-mhe: error: cannot ")

"""Checkpoints by repo id, through the unpatched Hub client against a local Hub over real HTTP."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_mhe.analysis import EnergyReport
from tests.hub_server import HubServer

_UPLOAD = """
    from huggingface_hub import HfApi
    api = HfApi()
    for repo, folder in folders.items():
        api.create_repo(repo, private=repo.endswith("private"))
        out[repo] = api.upload_folder(repo_id=repo, folder_path=folder).oid
"""

_ANALYZE = """
    import hf_mhe
    for label, (repo, options) in asked.items():
        try:
            report = hf_mhe.analyze(repo, **options)
            out[label] = report.to_dict()
        except hf_mhe.MHEError as error:
            out[label] = str(error)
"""

_UNKNOWN = """
import hf_mhe
try:
    hf_mhe.analyze("alice/never-seen")
except hf_mhe.MHEError as error:
    print(error)
"""


@pytest.fixture
def lost_shard(sharded_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "lost_shard"))
    max(folder.glob("*.safetensors")).unlink()
    return folder


@pytest.mark.story
def test_repositories_give_the_numbers_of_their_folders(
    hub: HubServer, report: EnergyReport, bert_folder: Path, sharded_folder: Path, lost_shard: Path, tmp_path: Path
) -> None:
    """If this fails, what a Hub id is analyzed as is not what was pushed there, or a failure's cause is not told."""
    pickled, components, several, empty = (tmp_path / name for name in ("pickled", "components", "several", "empty"))
    for folder in (pickled, components / "unet", several, empty):
        folder.mkdir(parents=True)
    torch.save({}, pickled / "pytorch_model.bin")
    save_file({"a": torch.randn(3, 4)}, components / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("one", "two"):
        save_file({name: torch.randn(3, 4)}, several / f"{name}.safetensors")
    (empty / "README.md").write_text("nothing yet")

    folders = {
        "alice/single": bert_folder,
        "alice/sharded": sharded_folder,
        "alice/private": bert_folder,
        "alice/lost": lost_shard,
        "alice/pickled": pickled,
        "alice/components": components,
        "alice/several": several,
        "alice/empty": empty,
    }
    home = tmp_path / "home"
    offline = hub.env(home) | {"HF_HUB_OFFLINE": "1"}
    unreachable = hub.env(home) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    # The client itself tries for 23 seconds, so this one runs beside the rest.
    lonely = subprocess.Popen(
        [sys.executable, "-c", _UNKNOWN],
        env=unreachable | {"HF_HOME": str(tmp_path / "lonely")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    commits = hub.call(_UPLOAD, tmp_path / "pusher", folders={repo: str(folder) for repo, folder in folders.items()})
    asked: dict[str, tuple[str, dict[str, object]]] = {repo.split("/")[1]: (repo, {}) for repo in folders}
    asked["nobody"] = ("alice/nothing-here", {})
    asked["no revision"] = ("alice/single", {"revision": "v9"})
    asked["by commit"] = ("alice/single", {"revision": commits["alice/single"]})
    told = hub.call(_ANALYZE, home, asked=asked)

    for label in ("single", "sharded", "private", "by commit"):
        found = EnergyReport.from_dict(told[label])
        assert found.revision == commits[found.source]
        assert [group.name for group in found.groups] == [group.name for group in report.groups]
        for group in found.groups:
            assert group.energy == pytest.approx(report[group.name].energy, rel=1e-6)
            assert group.role == report[group.name].role
    lost = max(file.name for file in sharded_folder.glob("*.safetensors"))
    assert lost in told["lost"]
    assert "runs whatever code" in told["pickled"]
    assert "unet/" in told["components"]
    assert "one.safetensors, two.safetensors" in told["several"]
    assert "no weights" in told["empty"]
    assert "README.md" in told["empty"]
    assert "neither a path that exists nor a model repository" in told["nobody"]
    assert "'v9'" in told["no revision"]
    # No weights are fetched of a repository that has none to analyze.
    assert not hub.requests("GET", r"alice/(pickled|several)/resolve/.*(bin|safetensors)$")

    # Another user does not even learn that a private repository is there.
    stranger = hub.call(_ANALYZE, tmp_path / "stranger", token=None, asked={"private": ("alice/private", {})})
    assert "if it is private, pass token=" in stranger["private"]

    # What was analyzed once is analyzed again from the cache: offline, and with the Hub out of reach.
    again = "import hf_mhe\nprint(hf_mhe.analyze('alice/sharded').revision)\n"
    printed = hub.run(["-c", again], home, environment=unreachable).stdout
    assert printed.strip() == commits["alice/sharded"]
    revision, refusal = hub.run(["-c", again + _UNKNOWN], home, environment=offline).stdout.splitlines()
    assert revision == commits["alice/sharded"]
    assert "HF_HUB_OFFLINE" in refusal
    answer, _ = lonely.communicate(timeout=120)
    assert "'alice/never-seen' is not a path that exists, and as a repository it is not in the cache: " in answer
    assert "http://127.0.0.1:9 cannot be reached" in answer

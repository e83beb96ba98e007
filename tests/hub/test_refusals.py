"""A push that is refused leaves nothing: on the Hub, in the folder, or among the temporary files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer

CASES = r"""
import json, sys, tempfile
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
import hf_mhe
from tests.hub.conftest import tiny_resnet
home, out = Path(sys.argv[1]), {}
tempfile.tempdir = str(home / "temporary")

def tree():
    return {str(path.relative_to(home)): path.read_bytes() if path.is_file() else None for path in home.rglob("*")}

def folder(name, change=lambda path: None):
    tiny_resnet(0).save_pretrained(home / name)
    change(home / name)
    return home / name

def damage(path):
    tensors = load_file(path / "model.safetensors")
    tensors["classifier.1.weight"][0, 0] = torch.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

def cut(path):
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-9])

def write(name, content):
    return lambda path: (path / name).write_bytes(content)

def link(path):
    (path / "vocab.txt").symlink_to(home / "secret")

(home / "temporary").mkdir(parents=True)
(home / "secret").write_text("a token")
INDEX = b'{"weight_map": {"a": "b.safetensors"}}'
broken = tiny_resnet(0)
with torch.no_grad():
    broken.classifier[1].weight[0, 0] = torch.nan
good = folder("good")
other = hf_mhe.analyze(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
angular = hf_mhe.analyze(tiny_resnet(1), distance="angular")
cases = {
    "damaged model": (broken, {}),
    "report of another": (tiny_resnet(0), {"after": other}),
    "two potentials": (tiny_resnet(0), {"before": angular, "after": hf_mhe.analyze(tiny_resnet(0))}),
    "config": (tiny_resnet(0), {"config": 3}),
    "processor": (tiny_resnet(0), {"processor": 3}),
    "metrics": (good, {"metrics": {"accuracy": float("nan")}}),
    "keyword": (good, {"licence": "mit"}),
    "pull request": (good, {"create_pr": True, "revision": "v1"}),
    "no folder": (home / "none", {}),
    "no config": (folder("no-config", lambda path: (path / "config.json").unlink()), {}),
    "no weights": (folder("no-weights", lambda path: (path / "model.safetensors").unlink()), {}),
    "damaged": (folder("damaged", damage), {}),
    "cut": (folder("cut", cut), {}),
    "missing shard": (folder("shard", write("model.safetensors.index.json", INDEX)), {}),
    "old report": (folder("report", write("energy_report_before.json", b"{}")), {}),
    "stored config": (folder("stored", write("mhe_config.json", b"[")), {}),
    "stored metrics": (folder("metrics", write("task_metrics.json", b"[")), {}),
    "readme": (folder("readme", write("README.md", b"---\n: [\n---\n")), {}),
    "link": (folder("link", link), {}),
    "card": (folder("card", write("README.md", b"---\ntags: [3]\n---\n# Mine\n")), {}),
    "token": (good, {"token": "hf_nobody"}),
    "namespace": (good, {"token": "hf_bob"}),
    "private": (good, {"private": True, "repo_id": "alice/public"}),
}
before = tree()
for name, (what, options) in cases.items():
    options = dict(options)
    repo_id = options.pop("repo_id", f"alice/refused-{name.replace(' ', '-')}")
    try:
        hf_mhe.push_to_hub(what, repo_id, **options)
        out[name] = "no error"
    except hf_mhe.MHEError as error:
        out[name] = str(error)
    now = tree()
    if now != before:
        out[name] = "left " + ", ".join(sorted(set(now) ^ set(before)) or ["other bytes"])
print(json.dumps(out))
"""


@pytest.mark.story
def test_every_refusal_leaves_nothing(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a refused push has made an empty repository, written into the user's folder, or filled the disk
    with a copy of the model."""
    hub.store.create("alice/public", private=False, author="alice")
    before = {name: dict(repo.refs) for name, repo in hub.store.repos.items()}
    printed = hub.run(["-c", CASES, str(tmp_path / "where")], tmp_path / "home", timeout=600).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    wrong = {
        name: message
        for name, message in found.items()
        if message == "no error" or message.startswith("left ") or "\n" in message
    }
    assert wrong == {}
    assert len(found) == 23
    assert {name: dict(repo.refs) for name, repo in hub.store.repos.items()} == before
    written = [
        entry for entry in hub.requests("*", ".") if entry.method in ("PUT", "DELETE") or "/commit/" in entry.path
    ]
    assert written == []
    assert "tags" in found["card"]

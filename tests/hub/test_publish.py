"""Publishing and reading back, by the unpatched client over HTTP: what is on the Hub is what was in memory."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer
from tests.hub_server.server import LoggedRequest

PRELUDE = """
import sys
from pathlib import Path
import torch
import hf_mhe
from huggingface_hub import HfApi
from tests.hub.conftest import tiny_resnet
api = HfApi()
def digest(model):
    import hashlib
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()
def refused(*args, **kwargs):
    try:
        hf_mhe.push_to_hub(*args, **kwargs)
    except hf_mhe.MHEError as error:
        return str(error)
    return "no error"
"""
WEIGHTS = "model.safetensors"
FILES = {
    ".gitattributes",
    "README.md",
    "comparison.json",
    "config.json",
    "energy_report.json",
    "energy_report_before.json",
    "figures/mhe_before_after.png",
    "figures/mhe_scores.png",
    "mhe_config.json",
    WEIGHTS,
    "task_metrics.json",
}


@dataclass(frozen=True)
class Pushed:
    """What the pushing process knew, and what the Hub was asked meanwhile."""

    out: dict[str, Any]
    log: list[LoggedRequest]


@pytest.fixture(scope="module")
def pushed(_hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    """A model with reports, config and metrics, pushed from memory."""
    _hub_server.log.clear()
    out = _hub_server.call(
        PRELUDE
        + """
model, before = tiny_resnet(1), hf_mhe.analyze(tiny_resnet(0))
after = hf_mhe.analyze(model)
config = hf_mhe.MHEConfig(hidden_weight=3.0)
info = hf_mhe.push_to_hub(model, "alice/digits", config=config, before=before, after=after, license="apache-2.0",
                          metrics={"accuracy": 0.975}, metrics_before={"accuracy": 0.97}, datasets="mnist")
out |= {"oid": info.oid, "digest": digest(model), "mean": after.summary.mean_score,
        "energies": {group.name: group.energy for group in after.groups}, "before": before.summary.mean_score}
""",
        tmp_path_factory.mktemp("pusher"),
    )
    return Pushed(out, list(_hub_server.log))


@pytest.mark.slow
def test_everything_arrives_in_one_commit(pushed: Pushed, hub: HubServer) -> None:
    """If this fails, a reader can see a repository with half of a model, or a part of the bundle is missing."""
    commits = [entry for entry in pushed.log if entry.method == "POST" and "/commit/" in entry.path]
    assert [entry.path for entry in commits] == ["/api/models/alice/digits/commit/main"]
    repo = hub.store.repos["alice/digits"]
    assert [commit.title for _, commit in repo.history("main")] == [
        "Upload model with its hyperspherical energy report",
        "initial commit",
    ]
    assert repo.refs["main"] == pushed.out["oid"]
    assert set(repo.commits[pushed.out["oid"]].files) == FILES


@pytest.mark.slow
def test_stranger_gets_the_same_model_and_numbers(pushed: Pushed, hub: HubServer, tmp_path: Path) -> None:
    """If this fails, what was published loads as another model, or its card claims energies that it does not have."""
    found = hub.call(
        PRELUDE
        + """
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification
from hf_mhe.hub import load_report, plan_push
model = AutoModelForImageClassification.from_pretrained("alice/digits")
report, stored = hf_mhe.analyze("alice/digits"), load_report("alice/digits")
card = ModelCard.load("alice/digits")
snippet = card.text.split("```python")[1].split("```")[0]
scope = {}
exec(snippet, scope)
out |= {"digest": digest(model), "snippet": digest(scope["model"]), "class": type(model).__name__,
        "config": hf_mhe.MHEConfig.from_pretrained("alice/digits").to_dict(),
        "energies": {group.name: group.energy for group in report.groups},
        "stored": {group.name: group.energy for group in stored.groups}, "source": stored.source,
        "before": load_report("alice/digits", filename="energy_report_before.json").summary.mean_score,
        "revision": report.revision, "card": card.data.to_dict(), "text": card.text, "mean": report.summary.mean_score}
hf_mhe.push_to_hub(model, "bob/tuned", before="alice/digits", token="hf_bob")
out["base model"] = api.model_info("bob/tuned").card_data.base_model
out["unchanged"] = api.get_paths_info("bob/tuned", "model.safetensors")[0].lfs.sha256
""",
        tmp_path,
        token=None,
    )
    assert found["class"] == "ResNetForImageClassification"
    assert found["digest"] == found["snippet"] == pushed.out["digest"]
    assert found["config"]["hidden_weight"] == 3.0
    assert found["energies"] == pytest.approx(pushed.out["energies"], rel=1e-6)
    assert found["stored"] == pushed.out["energies"]
    assert found["before"] == pushed.out["before"]
    assert found["source"] == "alice/digits"
    assert found["revision"] == pushed.out["oid"]
    card = found["card"]
    assert card["license"] == "apache-2.0"
    assert card["pipeline_tag"] == "image-classification"
    assert card["library_name"] == "transformers"
    assert "hf_mhe" in card["tags"]
    result = card["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "mnist", "type": "mnist"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.975}]
    claimed = re.search(r"Both must give a mean score of \*\*([\d.]+)\*\*", found["text"])
    assert claimed is not None
    assert float(claimed[1]) == pytest.approx(found["mean"], abs=5e-5)
    assert found["base model"] == "alice/digits", "the Hub would not show what a model was fine-tuned from"
    assert found["unchanged"] == hub.store.repos["alice/digits"].commits[pushed.out["oid"]].files[WEIGHTS].sha256
    # The config is asked for before a byte of the weights: a wrong repository must not cost a download.
    paths = [entry.path for entry in hub.requests("GET", "config.json|/lfs-storage/")]
    assert paths[0].endswith("config.json")


@pytest.mark.story
def test_folders_branches_pull_requests_and_private(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a push lands where it was not meant to: on main, in public, or over somebody's own README."""
    out = hub.call(
        PRELUDE
        + """
from hf_mhe.hub import save_for_hub
folder = Path(where) / "model"
save_for_hub(tiny_resnet(2), folder, config=hf_mhe.MHEConfig(), before=tiny_resnet(0), metrics={"accuracy": 0.9})
(folder / "checkpoint-10").mkdir()
(folder / "checkpoint-10" / "model.safetensors").write_bytes(b"not one")
(folder / ".env").write_text("SECRET=1")
(folder / "optimizer.pt").write_bytes(b"state")
untouched = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
plan = hf_mhe.hub.plan_push(folder, "alice/folder")
out["plan"] = [file.path for file in plan]
out["asked"] = len(api.whoami())
out["first"] = hf_mhe.push_to_hub(folder, "alice/folder", private=True).oid
out["again"] = hf_mhe.push_to_hub(folder, "alice/folder").oid
out["branch"] = hf_mhe.push_to_hub(tiny_resnet(3), "alice/folder", revision="v2", commit_message="on v2").oid
request = hf_mhe.push_to_hub(tiny_resnet(4), "alice/folder", create_pr=True, before=folder)
out["request"] = [request.pr_num, request.oid]
out["untouched"] = untouched == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
out["made public"] = refused(folder, "alice/folder", private=False)
card = "---\\nlicense: mit\\ntags: [mine]\\npipeline_tag: other\\n---\\n# My own words\\n\\nkeep me\\n"
api.create_repo("alice/owned")
from huggingface_hub import CommitOperationAdd
old = [CommitOperationAdd("README.md", card.encode()), CommitOperationAdd("notes.txt", b"n"),
       CommitOperationAdd("model-00001-of-00002.safetensors", b"old" + bytes(9)),
       CommitOperationAdd("comparison.json", b"{}")]
api.create_commit("alice/owned", old, commit_message="by hand")
out["owned"] = hf_mhe.push_to_hub(folder, "alice/owned", license="apache-2.0").oid
out["model"] = hf_mhe.push_to_hub(tiny_resnet(5), "alice/owned").oid
""",
        tmp_path / "home",
        where=str(tmp_path),
    )
    assert set(out["plan"]) == FILES - {".gitattributes"}
    repo = hub.store.repos["alice/folder"]
    assert repo.private
    assert set(repo.commits[out["first"]].files) == FILES
    # The same folder again: whatever was measured anew came out the same to the byte, so there is nothing to commit.
    assert out["again"] == out["first"] == repo.refs["main"]
    assert repo.refs["v2"] == out["branch"]
    assert repo.commits[out["branch"]].parent == out["first"]
    assert repo.commits[out["branch"]].title == "on v2"
    assert "comparison.json" not in repo.commits[out["branch"]].files, "a comparison of other weights was left"
    assert out["request"] == [1, repo.refs["refs/pr/1"]]
    assert "comparison.json" in repo.commits[repo.refs["refs/pr/1"]].files
    assert out["untouched"]
    assert "alice/folder" in out["made public"]
    assert "private" in out["made public"]

    owned = hub.store.repos["alice/owned"]
    for oid in (out["owned"], out["model"]):
        files = owned.commits[oid].files
        assert "notes.txt" in files
        assert "model-00001-of-00002.safetensors" not in files
        readme = hub.store.object_path(files["README.md"].sha256).read_text(encoding="utf-8")
        assert "# My own words\n\nkeep me\n" in readme
        assert readme.count("## Minimum hyperspherical energy") == 1
        assert "pipeline_tag: other" in readme
        assert "- mine\n- hf_mhe\n" in readme
        assert "license: apache-2.0" in readme
    assert "comparison.json" in owned.commits[out["owned"]].files
    assert "comparison.json" not in owned.commits[out["model"]].files


@pytest.mark.story
def test_refusals_are_one_clear_line(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a user gets a traceback of the HTTP client, or a failed push leaves something behind."""
    hub.store.create("alice/there", private=False, author="alice")
    hub.store.create("alice/hidden", private=True, author="alice")
    before = json.dumps(hub.store.repos["alice/there"].refs)
    hub.fail_once("POST", "alice/broken/commit/", 500)
    hub.fail_once("POST", "alice/there/commit/", 403)
    hub.fail_once("POST", "alice/there/commit/", 409)
    hub.fail_once("PUT", "/lfs-storage/", 403)
    out = hub.call(
        PRELUDE
        + """
model = tiny_resnet(6)
out["no token"] = refused(model, "alice/new", token=False)
out["unknown token"] = refused(model, "alice/there", token="hf_nobody")
out["other user"] = refused(model, "alice/there", token="hf_bob")
out["other namespace"] = refused(model, "alice/new", token="hf_bob")
out["hidden"] = refused(model, "alice/hidden", token="hf_bob")
out["upload"] = refused(model, "alice/upload")
out["broken"] = refused(model, "alice/broken")
out["branch"] = refused(model, "alice/there", revision="v9")
out["conflict"] = refused(model, "alice/there")
""",
        tmp_path,
    )
    expected = {
        "no token": ["alice/new", "401", "hf auth login"],
        "unknown token": ["alice/there", "401", "hf auth login"],
        "other user": ["alice/there", "403", "'alice'"],
        "other namespace": ["alice/new", "403", "'alice'"],
        "hidden": ["alice/hidden", "403"],
        "upload": ["alice/upload", "403", f"the new repository {hub.url}/alice/upload was made and is empty"],
        "broken": ["alice/broken", "500", f"the new repository {hub.url}/alice/broken was made and is empty"],
        "branch": ["alice/there", "403"],
        "conflict": ["alice/there", "409", "try again"],
    }
    assert set(out) == set(expected)
    for case, parts in expected.items():
        assert out[case].startswith("cannot "), case
        assert "\n" not in out[case]
        assert [part for part in parts if part not in out[case]] == [], (case, out[case])
    assert json.dumps(hub.store.repos["alice/there"].refs) == before
    assert len(hub.store.repos["alice/broken"].history("main")) == 1
    assert "alice/new" not in hub.store.repos


@pytest.mark.story
def test_no_hub_at_all(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a broken connection ends in a traceback, or in a long silence."""
    nobody = "http://127.0.0.1:9"  # the discard port: nothing listens there
    script = f"{PRELUDE}\nprint(refused(tiny_resnet(6), 'alice/x'))"
    environment = {**hub.env(tmp_path), "HF_ENDPOINT": nobody}
    printed = hub.run(["-c", script], tmp_path, environment=environment, timeout=60).stdout.splitlines()
    # DeepSpeed, where it is installed, logs to stdout as soon as transformers saves a model.
    (message,) = (line for line in printed if "real_accelerator.py" not in line)
    assert f"cannot look at alice/x: {nobody} cannot be reached" in message

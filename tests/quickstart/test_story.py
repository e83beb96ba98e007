"""The whole story as a stranger lives it: copies, two trainings, a folder, a publication, a download elsewhere."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hub_server import HubServer

pytestmark = pytest.mark.slow  # each waits for the same run of the program

REPO_ID = "alice/digits-mhe"
FILES = {
    "README.md",
    "comparison.html",
    "comparison.json",
    "config.json",
    "energy_report.json",
    "energy_report_before.json",
    "mhe_config.json",
    "model.safetensors",
    "plain/config.json",
    "plain/model.safetensors",
    "plain/preprocessor_config.json",
    "preprocessor_config.json",
    "quickstart.json",
}


@dataclass(frozen=True)
class Story:
    """A run of `hf-mhe quickstart --push-to-hub`, and the Hub that it published to."""

    hub: HubServer
    folder: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def story(_hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One epoch: the files and the numbers' meaning do not depend on how long the training was."""
    base = tmp_path_factory.mktemp("quickstart")
    arguments = ["--epochs", "1", "--output-dir", str(base / "out"), "--push-to-hub", REPO_ID]
    done = _hub_server.run(["-m", "hf_mhe.cli", "quickstart", *arguments], base / "home")
    return Story(_hub_server, base / "out", done)


def files_in(folder: Path) -> set[str]:
    """Relative names of all files."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def results(stdout: str) -> dict[str, list[str]]:
    """The lines of results."""
    names = ("test accuracy", "pairs of copies", "mean spread", "most crowded layer")
    return {
        name: line.removeprefix(name).removeprefix(" " + name).split()
        for line in map(str.strip, stdout.splitlines())
        for name in names
        if line.startswith(name)
    }


def test_it_prints_the_results_of_both(story: Story) -> None:
    """Else a newcomer would not see what MHE did; the numbers of the folder are those that were printed."""
    found = results(story.done.stdout)
    assert set(found) == {"test accuracy", "pairs of copies", "mean spread", "most crowded layer"}
    plain, mhe = (
        json.loads((story.folder / name).read_text()) for name in ("energy_report_before.json", "energy_report.json")
    )
    assert found["mean spread"] == [f"{report['summary']['mean_spread']:.3f}" for report in (plain, mhe)]
    assert mhe["summary"]["mean_spread"] > plain["summary"]["mean_spread"] + 0.1
    assert found["pairs of copies"] == [str(report["summary"]["near_duplicates"]) for report in (plain, mhe)]
    assert mhe["summary"]["near_duplicates"] < plain["summary"]["near_duplicates"] / 2 >= 504, "copies of copies"
    accuracies = [float(word) for word in found["test accuracy"] if word != "%"]
    assert len(accuracies) == 2
    assert 20 < accuracies[1] <= 100, "guessing is 10"


def test_the_folder_is_whole_and_loads(story: Story) -> None:
    """Else what was trained could not be used: both models load, and classify as well as was printed."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from hf_mhe.quickstart.data import digits

    names = files_in(story.folder)
    assert names >= FILES
    assert [name for name in names if name.endswith((".bin", ".pt"))] == []
    test = digits()["test"]
    accuracies = []
    for subfolder in ("plain", ""):
        model = AutoModelForImageClassification.from_pretrained(story.folder, subfolder=subfolder)
        processor = AutoImageProcessor.from_pretrained(story.folder, subfolder=subfolder)
        with torch.no_grad():
            logits = model(**processor(test["image"][:], return_tensors="pt")).logits
        predicted = [model.config.id2label[i] for i in logits.argmax(-1).tolist()]
        right = sum(a == test.features["label"].int2str(b) for a, b in zip(predicted, test["label"], strict=True))
        accuracies += [f"{100 * right / len(test):.2f}", "%"]
    assert results(story.done.stdout)["test accuracy"] == accuracies


@pytest.mark.story
def test_the_same_seed_gives_the_same_numbers(story: Story, tmp_path: Path) -> None:
    """Else no one could repeat what they read; another seed is another run."""
    from hf_mhe.quickstart import run

    again = run(tmp_path / "again", seed=0, epochs=1)
    for report, name in ((again.mhe.report, "energy_report.json"), (again.plain.report, "energy_report_before.json")):
        stored = json.loads((story.folder / name).read_text())
        # The weights are the same to the bit; the last digits of an analysis depend on how many threads it had.
        assert report.summary.mean_spread == pytest.approx(stored["summary"]["mean_spread"], rel=1e-9)
        assert report.summary.most_crowded == stored["summary"]["most_crowded"]
    for name in ("model.safetensors", "plain/model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (story.folder / name).read_bytes(), name
    assert f"{100 * again.mhe.accuracy:.2f}" in results(story.done.stdout)["test accuracy"]


def test_it_was_published_in_one_commit(story: Story) -> None:
    """Else a reader could meet a repository with half of a model in it."""
    commits = [entry for entry in story.hub.log if entry.method == "POST" and "/commit/" in entry.path]
    assert [entry.status for entry in commits if REPO_ID in entry.path] == [200]


@pytest.mark.story
def test_a_stranger_downloads_and_measures_the_same(story: Story, tmp_path: Path) -> None:
    """Else the published claims could not be checked: from an empty cache, the same model and the same scores."""
    printed = story.hub.run(["-m", "hf_mhe.cli", "analyze", REPO_ID, "--json", "-"], tmp_path / "a", token=None).stdout
    local = json.loads((story.folder / "energy_report.json").read_text())
    measured = {group["name"]: group["energy"] for group in json.loads(printed)["groups"]}
    assert measured == pytest.approx({group["name"]: group["energy"] for group in local["groups"]}, rel=1e-6)
    code = """
        from transformers import AutoModelForImageClassification
        from hf_mhe import MHEConfig
        from huggingface_hub import HfApi
        for subfolder in ("", "plain"):
            model = AutoModelForImageClassification.from_pretrained(repo, subfolder=subfolder)
            out["sum" + subfolder] = float(sum(p.detach().double().sum() for p in model.parameters()))
        out["space"] = MHEConfig.from_pretrained(repo).space
        out["files"] = [s.rfilename for s in HfApi().model_info(repo).siblings]
    """
    found = story.hub.call(code, tmp_path / "b", token=None, repo=REPO_ID)
    from transformers import AutoModelForImageClassification

    for subfolder in ("", "plain"):
        model = AutoModelForImageClassification.from_pretrained(story.folder, subfolder=subfolder)
        assert found["sum" + subfolder] == float(sum(p.detach().double().sum() for p in model.parameters()))
    assert found["space"] == "half"
    assert set(found["files"]) >= FILES - {"quickstart.json"}  # by which a later run knows its own files on this disk

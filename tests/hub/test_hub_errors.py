"""Whatever is read from the Hub, the same refusal is one line with the same remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub_server import HubServer

READ = """
import hf_mhe
from hf_mhe.hub import load_report
READERS = {"weights": hf_mhe.analyze, "config": hf_mhe.MHEConfig.from_pretrained, "report": load_report}
def answers(repo_id, **options):
    found = {}
    for name, read in READERS.items():
        try:
            found[name] = repr(read(repo_id, **options))
        except hf_mhe.MHEError as error:
            found[name] = str(error)
    return found
"""
CASES = """
out["absent"] = answers("alice/absent")
out["hidden"] = answers("alice/hidden", token="hf_bob")
out["stranger"] = answers("alice/hidden", token=False)
out["unknown token"] = answers("alice/readable", token="hf_nobody")
out["revision"] = answers("alice/readable", revision="v9")
"""


@pytest.mark.story
def test_every_reader_gives_the_cause_and_the_remedy(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, one of three ways to read from the Hub ends in a traceback or in the HTTP client's own words."""
    hub.store.create("alice/readable", private=False, author="alice")
    hub.store.create("alice/hidden", private=True, author="alice")
    found = hub.call(READ + CASES, tmp_path / "home")
    words = {
        "absent": ["HTTP 404", "if it is private, pass token="],
        "hidden": ["HTTP 404", "if it is private, pass token="],
        "stranger": ["HTTP 401", "if it is private, pass token="],
        "unknown token": ["HTTP 401", "hf auth login"],
        "revision": ["HTTP 404", "no revision 'v9'", "a branch, a tag or a commit"],
    }
    lines = {(case, reader): line for case, answers in found.items() for reader, line in answers.items()}
    assert len(lines) == 15
    script = READ + "import json\nprint(json.dumps(answers('alice/never-seen')))"
    offline = {**hub.env(tmp_path / "offline"), "HF_HUB_OFFLINE": "1"}
    printed = hub.run(["-c", script], tmp_path / "offline", environment=offline).stdout.splitlines()[-1]
    lines |= {("offline", reader): line for reader, line in json.loads(printed).items()}
    words["offline"] = ["HF_HUB_OFFLINE forbids asking the Hub"]
    wrong = {key: line for key, line in lines.items() if any(word not in line for word in [*words[key[0]], "alice/"])}
    assert wrong == {}
    assert [line for line in lines.values() if "\n" in line] == []

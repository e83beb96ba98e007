"""A README that somebody wrote: what a card adds to it, and that nothing else of it changes by a byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from huggingface_hub import ModelCard

import hf_mhe
from hf_mhe.hub import plan_push, save_for_hub
from hf_mhe.hub.card import BEGIN, END
from hf_mhe.hub.readme import merge_readme
from tests.hub_server import HubServer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESULT = """  - task:
      type: t
    dataset:
      name: d
      type: d
    metrics:
    - type: a
      value: 0.5
"""
OTHER = """  # by hand
  - task: {type: on}
    dataset: {name: no, type: no}
    metrics:
    - {type: f1, value: 1e3}
"""
CARD = (
    "---\nlibrary_name: transformers\nlicense: mit\ntags:\n- hf_mhe\n- minimum-hyperspherical-energy\nmodel-index:\n"
    f"- name: x\n  results:\n{RESULT}---\n\n# x\n\n{BEGIN}\nours\n{END}\n"
)
OURS = ["hf_mhe", "minimum-hyperspherical-energy"]
# What YAML 1.1 reads as something else, and what reading and writing again drops.
HARD = """# kept: who may change this
language: [no, "yes"]   # Norwegian
on: off
ratio: 16:9
rate: 1e3
mode: 0o17
day: 2024-01-01
nothing: ~
quoted: 'it''s'
"double": "\\u00e9\\t"
anchor: &one {a: no, b: [1e3, .5]}
alias: *one
z_first: 1
a_last: 日本語 🙂
folded: >-
  two
  lines

text: |
  ---x
    trailing

# the end
"""


def written(readme: str) -> dict[str, Any]:
    """A README's metadata with every scalar as the text that stands there."""
    return yaml.load(readme.split("---\n" if "---\n" in readme else "---\r\n")[1], Loader=yaml.BaseLoader)


def assert_only_added(before: str, after: str) -> None:
    """Every line of the one is in the other, in the same order; its last one may have got a line break."""
    *lines, last = before.split("\n")
    there = after.split("\n")
    for line in lines:
        assert line in there, repr(line)
        there = there[there.index(line) + 1 :]
    assert any(line.startswith(last) for line in there)


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("text", ["", "# Mine\n", "no end", "spaces  \n\t\n\n\n", "a\n---\nb: c\n---\n\x0c\u2028x"])
@pytest.mark.parametrize("lead", ["", "\n\n"])
def test_every_line_of_the_owner_stays(lead: str, text: str, line_break: str) -> None:
    """If this fails, publishing turns Norwegian into `false`, or drops what an owner wrote for other people."""
    text = text.replace("\n", line_break)
    readme = f"{lead}---\n{HARD}---\n".replace("\n", line_break) + text
    merged = merge_readme(readme, CARD, "here")
    assert f"---{line_break}{text}" in merged
    assert_only_added(readme, merged)
    old, new = (yaml.load(part.split(f"---{line_break}")[1], Loader=yaml.BaseLoader) for part in (readme, merged))
    assert {key: new[key] for key in old} == old
    assert (new["license"], new["tags"]) == ("mit", OURS)
    assert merge_readme(merged, CARD, "here") == merged, "the same push again must change nothing"
    assert "\n" not in merged.replace(line_break, ""), "line ends of two kinds"
    owned = merged.replace("ours", "more of ours")
    assert merge_readme(owned, CARD, "here") == merged, "only what is between the marks is rewritten"


@pytest.mark.parametrize(
    ("block", "tags"),
    [
        ("tags:\n- no # c\n- 'b'\n\n# after\n", ["no", "b"]),
        ("tags:\n  -   no\n  - b\nx: 1\n", ["no", "b"]),
        ("tags: [no, 'b']  # mine\n", ["no", "b"]),
        ("tags: [\n  no, # c\n  'b', # d\n]\n", ["no", "b"]),
        ("tags: no # c\n", ["no"]),
        ('"tags":\n  - "a, b"\n', ["a, b"]),
        ("tags:\n", []),
        ("tags: []\n", []),
        ("x: &t [no, b]\ntags: *t\n", ["no", "b"]),
        ("tags: &t\n- no\nx: *t\n", ["no"]),
        ("  x: 1\n  tags:\n  - no\n", ["no"]),
        ("? tags\n: - no\n", ["no"]),
    ],
)
def test_tags_are_added_to_lists_of_any_style(block: str, tags: list[str]) -> None:
    """If this fails, an owner's own tags are lost, rewritten or doubled."""
    merged = merge_readme(f"---\n{block}---\ntext\n", CARD, "here")
    assert written(merged)["tags"] == [*tags, *OURS]
    old = yaml.load(block, Loader=yaml.BaseLoader)
    assert {key: value for key, value in written(merged).items() if key in old and key != "tags"} == {
        key: value for key, value in old.items() if key != "tags"
    }
    for comment in ("# c", "# d", "# mine", "# after"):
        assert (comment in block) == (comment in merged)
    assert merge_readme(merged, CARD, "here") == merged


@pytest.mark.parametrize(
    ("block", "others"),
    [
        ("license: gpl # why\nx: no\n", {"x": "no"}),
        ("license: >-\n  gpl\n  three\n\nx: no\n", {"x": "no"}),
        ("license: &l gpl\nname: *l\n", {"name": "gpl"}),
        ("license: gpl\nlicense: lgpl\nx: 1e3\n", {"x": "1e3"}),
        ("license: [gpl, lgpl]\n", {}),
        ("license:\n", {}),
        ("license:\n- gpl\n# c\nx: on\n", {"x": "on"}),
    ],
)
def test_a_value_that_was_given_replaces_only_its_own(block: str, others: dict[str, str]) -> None:
    """If this fails, `license="mit"` changes more than the licence."""
    merged = merge_readme(f"---\n{block}---\ntext\n", CARD, "here")
    assert written(merged)["license"] == "mit"
    assert {key: written(merged)[key] for key in others} == others
    for comment in ("# why", "# c"):
        assert (comment in block) == (comment in merged)


def test_results_of_others_stay_as_they_are_written() -> None:
    """If this fails, publishing one result rewrites the numbers and the names of all the others."""
    stale = RESULT.replace("0.5", "1e-1 # old")
    readme = f"---\nmodel-index:\n- name: no\n  results:\n{OTHER}{stale}- name: second\n  results:\n{OTHER}---\ntext\n"
    merged = merge_readme(readme, CARD, "here")
    assert merged.count(OTHER) == 2
    first, second = written(merged)["model-index"]
    assert (first["name"], second["name"], len(first["results"]), len(second["results"])) == ("no", "second", 2, 1)
    assert first["results"][1]["metrics"] == [{"type": "a", "value": "0.5"}]
    added = merge_readme(readme.replace(stale, ""), CARD, "here")
    assert_only_added(readme.replace(stale, ""), added)
    assert len(written(added)["model-index"][0]["results"]) == 2
    assert merge_readme(merged, CARD, "here") == merged


def test_the_card_that_trainer_writes_gets_results() -> None:
    """If this fails, a model that Trainer pushed with its own card cannot be published with its energies."""
    readme = "---\nlibrary_name: transformers\nmodel-index:\n- name: out\n  results: []\n---\n\n# out\n"
    merged = merge_readme(readme, CARD, "here")
    assert written(merged)["model-index"] == written(CARD)["model-index"]
    assert merge_readme(merged, CARD, "here") == merged


def test_what_a_key_found_by_itself_does_not_know_better() -> None:
    """If this fails, a guess of ours replaces what the owner wrote."""
    card = CARD.replace("license: mit", "base_model: a/guess\nbase_model_relation: adapter")
    readme = "---\nlibrary_name: no\nbase_model: my/own\n---\ntext\n"
    guessed = written(merge_readme(readme, card, "here", found=("base_model", "base_model_relation")))
    assert (guessed["library_name"], guessed["base_model"]) == ("no", "my/own")
    assert written(merge_readme(readme, card, "here"))["base_model"] == "a/guess"


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("readme", "message"),
    [
        (b"---\nlicense: mit\nx: [a\n---\n", "line 4: expected"),
        (b"---\na: 1\nx:\n\ty: 1\n---\n", "line 4: found character"),
        (b"\n\n---\na: 1\nb: *c\n---\n", "line 5"),
        (b"---\n- a\n---\n", "line 2: a mapping"),
        (b"---\na: \x01\n---\n", r"line 2: the character U\+0001"),
        (b"---\na: " + b"[" * 50_000 + b"\n---\n", "nested too deep"),
        (b"---\n{license: gpl}\n---\n", r"one \{...\} \(line 2\)"),
        (b"---\ntags: {a: b}\n---\n", "tags of the README .* must be a list of strings"),
        ("---\nlicense: mit\n---\né".encode("latin-1"), "not UTF-8: byte 0xe9 in line 4; save it as UTF-8"),
        ("---\nlicense: mit\n---\né".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("---\nlicense: mit\n---\né".encode("utf-32"), "is UTF-32: save it as UTF-8"),
        ("---\nlicense: mit\n---\né".encode("utf-16-le"), "a NUL in line 1|not UTF-8"),
        (b"---\rlicense: mit\r---\rtext\r", "carriage returns alone"),
        (f"{END}\n{BEGIN}\n".encode(), "once each, or neither"),
        (f"{BEGIN}\n{BEGIN}\n{END}\n".encode(), "once each, or neither"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_written(
    readme: bytes, message: str, resnet: PreTrainedModel, tmp_path: Path
) -> None:
    """If this fails, a README is published damaged, or half of a model lies beside one that was refused."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_bytes(readme)
    with pytest.raises(hf_mhe.MHEError, match=message) as caught:
        save_for_hub(resnet, folder)
    assert "\n" not in str(caught.value)
    assert "README.md" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_bytes() == readme
    resnet.save_pretrained(folder)
    with pytest.raises(hf_mhe.MHEError, match=message):
        plan_push(folder, "alice/x")


@pytest.mark.slow
def test_a_byte_order_mark_hides_nothing(resnet: PreTrainedModel, tmp_path: Path) -> None:
    """If this fails, a README from Notepad loses its licence, and its metadata becomes its text."""
    owned = "---\r\nlicense: mit\r\nlanguage: [no]\r\n---\r\n# Mein Modell für alle\r\n"
    (tmp_path / "README.md").write_bytes(owned.encode("utf-8-sig"))
    save_for_hub(resnet, tmp_path)
    content = (tmp_path / "README.md").read_bytes().decode("utf-8")
    assert_only_added(owned, content)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, "---" in card.text.split(BEGIN)[0]) == ("mit", False)
    first = (tmp_path / "README.md").read_bytes()
    save_for_hub(resnet, tmp_path)
    assert (tmp_path / "README.md").read_bytes() == first


@pytest.mark.story
def test_a_readme_on_the_hub_stays_its_owners(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a push over somebody's README changes what it says, or one that cannot be read is lost."""
    readme = f"---\r\n{HARD}---\r\n# Meins  \r\n\r\nohne Ende".replace("\r\n", "\n").replace("\n", "\r\n")
    out = hub.call(
        """
import base64, os, urllib.request
import hf_mhe
from pathlib import Path
from huggingface_hub import HfApi
from tests.hub.conftest import tiny_resnet
api = HfApi()
for name, content in (("alice/hard", readme.encode("utf-8-sig")), ("alice/wide", readme.encode("utf-16"))):
    api.create_repo(name)
    # As git would push it: the client itself sends no README that is not UTF-8.
    lines = [{"key": "header", "value": {"summary": "by hand"}}, {"key": "file", "value": {
        "path": "README.md", "encoding": "base64", "content": base64.b64encode(content).decode()}}]
    url = f"{api.endpoint}/api/models/{name}/commit/main"
    headers = {"Authorization": "Bearer " + os.environ["HF_TOKEN"], "Content-Type": "application/x-ndjson"}
    body = "\\n".join(map(json.dumps, lines)).encode()
    urllib.request.urlopen(urllib.request.Request(url, body, headers)).read()
    out[name] = api.model_info(name).sha
out["first"] = hf_mhe.push_to_hub(tiny_resnet(1), "alice/hard").oid
out["again"] = hf_mhe.push_to_hub(tiny_resnet(1), "alice/hard").oid
try:
    hf_mhe.push_to_hub(tiny_resnet(1), "alice/wide")
except hf_mhe.MHEError as error:
    out["refused"] = str(error)
out["head"] = api.model_info("alice/wide").sha
out["read"] = Path(api.hf_hub_download("alice/hard", "README.md")).read_bytes().decode("utf-8")
""",
        tmp_path,
        readme=readme,
    )
    assert_only_added(readme, out["read"])
    assert out["read"].startswith("---\r\n# kept")
    assert out["again"] == out["first"]
    assert out["refused"] == "the README in alice/wide is UTF-16: save it as UTF-8"
    assert out["head"] == out["alice/wide"]


@pytest.mark.parametrize("written", ["library_name: peft\nbase_model_relation: adapter\n", "library_name: peft\n"])
def test_a_whole_model_is_not_called_an_adapter(written: str) -> None:
    """If this fails, the Hub says of a merged model that it is an adapter, and how peft loads one."""
    old = f"---\nlicense: mit\nbase_model: a/b # mine\n{written}---\n\n# Mine\n"
    merged = merge_readme(old, CARD, "here")
    metadata = yaml.safe_load(merged.split("---")[1])
    assert metadata["library_name"] == "transformers"
    assert "base_model_relation" not in metadata
    assert "license: mit\nbase_model: a/b # mine\n" in merged
    of_adapter = CARD.replace("library_name: transformers", "library_name: peft\nbase_model_relation: adapter")
    metadata = yaml.safe_load(merge_readme(old, of_adapter, "here").split("---")[1])
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")
    kept = merge_readme(old.replace(written, "library_name: keras\nbase_model_relation: finetune\n"), CARD, "here")
    assert "library_name: keras\nbase_model_relation: finetune\n" in kept

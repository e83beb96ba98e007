"""JSON that breaks its reader: every file that hf_mhe parses gives one clear error, or is read."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_mhe
from hf_mhe import MHEConfig, MHEError
from hf_mhe.json_files import parse_json

DEEP = "[" * 50_000 + "]" * 50_000
# Python's parser takes these; what walks through them afterwards would not.
NESTED = '{"a":' * 600 + "1" + "}" * 600

Damage = Callable[[Path, str], object]


def _weights(path: Path, header: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if header is None:
        save_file({"a.weight": torch.randn(6, 4)}, path)
    else:
        path.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode())
    return path


def _header(folder: Path, text: str) -> object:
    return hf_mhe.analyze(_weights(folder / "model.safetensors", f'{{"__metadata__":{text}}}'))


def _entry(folder: Path, text: str) -> object:
    return hf_mhe.analyze(_weights(folder / "model.safetensors", f'{{"a.weight":{text}}}'))


def _beside(name: str, rest: str = "") -> Damage:
    def damage(folder: Path, text: str) -> object:
        _weights(folder / "model.safetensors")
        (folder / name).write_text(text)
        return hf_mhe.analyze(folder)

    damage.__name__ = name
    return damage


def _index(folder: Path, text: str) -> object:
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map":{{}},"metadata":{text}}}')
    return hf_mhe.analyze(folder)


def _adapter(folder: Path, text: str) -> object:
    _weights(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(text)
    return hf_mhe.analyze(folder)


def _report(folder: Path, text: str) -> object:
    (folder / "report.json").write_text(f'{{"format":"hf_mhe.energy_report","notes":{text}}}')
    return hf_mhe.EnergyReport.load(folder / "report.json")


def _mhe_config(folder: Path, text: str) -> object:
    (folder / "mhe_config.json").write_text(text)
    return MHEConfig.from_pretrained(folder)


PLACES = [
    _header,
    _entry,
    _beside("config.json"),
    _beside("modules.json"),
    _beside("model_index.json"),
    _index,
    _adapter,
    _report,
    _mhe_config,
]


@pytest.mark.parametrize("text", [DEEP, NESTED], ids=["50,000 deep", "600 deep"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_json_nested_without_end_is_one_error(place: Damage, text: str, tmp_path: Path) -> None:
    """If this failed, a file of brackets would end an analysis in a RecursionError."""
    with pytest.raises(MHEError, match="nested deeper than 100 levels") as caught:
        place(tmp_path, text)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1" * 5000, "not JSON"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1, 2]", "holds a list, not a JSON object"),
    ],
)
def test_what_is_no_object_is_named(text: str, says: str, tmp_path: Path) -> None:
    """If this failed, a number of 5,000 digits in a config would be a ValueError of Python about a setting of its."""
    _weights(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MHEError, match=says) as caught:
        hf_mhe.analyze(tmp_path)
    assert "config.json" in str(caught.value)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    """If this failed, a config saved in another encoding would be a UnicodeDecodeError."""
    _weights(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"name": "é"}', encoding="latin-1")
    with pytest.raises(MHEError, match=r"config\.json is not JSON: 'utf-8'"):
        hf_mhe.analyze(tmp_path)


def test_a_byte_order_mark_is_read_over(bert_file: Path, tmp_path: Path) -> None:
    """If this failed, a config that an editor on Windows saved would be no JSON."""
    shutil.copytree(bert_file, tmp_path / "bert")
    config = tmp_path / "bert" / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert hf_mhe.analyze(tmp_path / "bert").groups == hf_mhe.analyze(bert_file).groups


def test_a_header_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    """If this failed, which of two entries of one name is measured would be chance."""
    entry = '"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}'
    path = _weights(tmp_path / "model.safetensors", f"{{{entry},{entry}}}")
    path.write_bytes(path.read_bytes() + b"\0" * 16)
    with pytest.raises(MHEError, match=r"the key 'a\.weight' stands twice"):
        hf_mhe.analyze(path)


def test_what_any_file_of_a_model_says_is_read() -> None:
    """If this failed, the guard against depth would refuse a file that is in order."""
    inner: object = {"Infinity": float("inf")}
    for _ in range(48):
        inner = {"a": [inner]}
    assert parse_json(json.dumps(inner), "it") == inner
    assert parse_json('{"a": 1, "a": 2}', "it") == {"a": 2}
    assert parse_json("3", "it") == 3


@pytest.fixture(scope="module")
def bert_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.analysis.conftest import small_bert

    folder = tmp_path_factory.mktemp("bert")
    small_bert(0).save_pretrained(folder)
    return folder


def test_the_program_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, a user of the terminal would get thousands of lines of traceback, and exit status 1."""
    from hf_mhe.cli.entry import main

    (tmp_path / "config.json").write_text(DEEP)
    monkeypatch.setattr(sys, "argv", ["hf-mhe", "analyze", str(_weights(tmp_path / "model.safetensors").parent)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

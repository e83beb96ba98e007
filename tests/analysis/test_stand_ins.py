"""What lies in place of a file that was meant: said so, with the remedy."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hf_mhe
from hf_mhe.errors import MHEError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22ead\nsize 548105171\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Sign in to continue</body></html>\n"
BARE_PAGE = b"\n<html class=''>\n<body>404</body></html>"
XML = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
ANNEX = b"/annex/objects/SHA256E-s548105171--4d7a2146.safetensors\n"
STAND_INS = [
    (LFS, "a Git LFS pointer", "git lfs pull"),
    (PAGE, "a web page", "hf download"),
    (BARE_PAGE, "a web page", "hf download"),
    (XML, "an XML message", "fetch the file itself again"),
    (ANNEX, "a git-annex pointer", "git annex get"),
]


@pytest.mark.parametrize(("content", "what", "remedy"), STAND_INS)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "model.safetensors.index.json", "a shard", "modules.json"]
)
def test_a_stand_in_is_named_with_its_remedy(
    name: str, content: bytes, what: str, remedy: str, sharded_folder: Path, bert_folder: Path, tmp_path: Path
) -> None:
    """If this failed, a clone without Git LFS would be called a damaged model."""
    in_shards = name in ("model.safetensors.index.json", "a shard")
    folder = tmp_path / "model"
    shutil.copytree(sharded_folder if in_shards else bert_folder, folder)
    damaged = next(folder.glob("model-00002-*")) if name == "a shard" else folder / name
    damaged.write_bytes(content)
    with pytest.raises(MHEError, match=what) as caught:
        hf_mhe.analyze(folder)
    assert remedy in str(caught.value)
    assert str(damaged) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["torch.save", "old torch.save", "gguf"])
def test_weights_of_another_format_are_named(kind: str, tmp_path: Path) -> None:
    """If this failed, a renamed pickle would be said to have a wrong header length."""
    path = tmp_path / "model.safetensors"
    if kind == "gguf":
        path.write_bytes(b"GGUF" + bytes(100))
    else:
        state = nn.Linear(300, 300).state_dict()
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch.save")
    what = {"torch.save": "a zip archive, as torch.save writes", "old torch.save": "a pickle", "gguf": "a GGUF file"}
    with pytest.raises(MHEError, match=what[kind]):
        hf_mhe.analyze(path)


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x8B1F])
def test_the_length_of_a_header_may_look_like_another_format(length: int, tmp_path: Path) -> None:
    """If this failed, a file in order would be refused because its header is 640 bytes long."""
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.randn(6, 4)}, path)
    raw = path.read_bytes()
    old = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + old])).ljust(length).encode()
    path.write_bytes(length.to_bytes(8, "little") + header + raw[8 + old :])
    assert [group.name for group in hf_mhe.analyze(path).groups] == ["a"]


def test_the_program_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, a user of the terminal would not learn that one command fetches the model."""
    from hf_mhe.cli.entry import main

    (tmp_path / "model.safetensors").write_bytes(LFS)
    monkeypatch.setattr(sys, "argv", ["hf-mhe", "analyze", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert (caught.value.code, "git lfs pull" in line) == (2, True)

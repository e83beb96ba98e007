"""Whatever the encoding, the characters of a name or the state of the pipes: a result, and the right exit status."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from hf_mhe import EnergyReport
from hf_mhe.cli import console
from tests.cli.conftest import Done

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX streams and file names")
ENCODINGS = ("utf-8", "cp1252", "latin-1", "ascii", "cp437", "koi8-r")
STRANGE = ("é", "層", "😀", "\udcff", "a\x1b[31mb", "a\nb", "a\u202eb", "[/bold]", "a\tb")


Run = Callable[..., Done]


def checkpoint(folder: Path, *layers: str, made_in: Path | None = None) -> Path:
    """A checkpoint of layers with these names; copied from another place, where one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    if made_in is not None:
        shutil.copy(made_in / "model.safetensors", folder / "model.safetensors")
        return folder
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{name}.weight": torch.randn(16, 8, generator=generator) for name in layers}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_shows_every_name(run: Run, tmp_path: Path, encoding: str) -> None:
    """If this failed, a path with é or 層 would end in a traceback, and in 1, which means that a check failed."""
    layers = [name for name in STRANGE if name != "\udcff"]  # a safetensors header is UTF-8
    folder = checkpoint(tmp_path / "é層😀", *layers)
    done = run("analyze", folder, "--verbose", "--fail-above", "0", encoding=encoding)
    assert done.status == 1, done.stderr
    text = done.stdout.decode(encoding)
    rows = [line for line in text.splitlines() if " hidden " in line]
    assert len(rows) == len(layers)
    for name in ("é", "層", "😀"):
        there = name.encode(encoding, "backslashreplace").decode(encoding)
        assert any(row.split()[0] == there for row in rows), name
        assert there in text.splitlines()[0]
    for escaped in (r"a\x1b[31mb", r"a\nb", r"a\u202eb", "[/bold]", r"a\tb"):
        assert sum(escaped in row for row in rows) == 1, escaped
    assert b"\x1b" not in done.stdout + done.stderr
    # twelve columns, of which the verdict, "as random", has two words
    assert {len(row.split()) for row in rows} == {13}, "a name broke the table"
    assert len(done.stderr.decode(encoding).splitlines()) == len(
        [line for line in done.stderr.decode(encoding).splitlines() if line.startswith(("above", "note"))]
    )
    utf8 = encoding == "utf-8"
    assert ("─" in text) == utf8


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_on_stdout_is_json_in_every_encoding(run: Run, tmp_path: Path, encoding: str) -> None:
    """If this failed, a program that reads our JSON would meet an escape that JSON does not have, or no output."""
    layers = [name for name in STRANGE if name != "\udcff"]
    folder = checkpoint(tmp_path / "é層", *layers)
    done = run("analyze", folder, "--json", "-", encoding=encoding)
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout.decode("utf-8"))
    assert {group["name"] for group in report["groups"]} == set(layers)
    assert report["source"] == str(folder)
    assert ("é".encode() in done.stdout) == (encoding == "utf-8")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_other_commands_and_errors_too(run: Run, tmp_path: Path, encoding: str) -> None:
    """If this failed, one command would still end in a traceback where the others do not."""
    folder = checkpoint(tmp_path / "層", "é", "😀", "a\nb")
    done = run("compare", folder, folder, encoding=encoding)
    assert done.status == 0
    assert {line.partition(": ")[0] for line in done.stderr.decode(encoding).splitlines()} == {"note"}
    assert len([line for line in done.stdout.decode(encoding).splitlines() if "+0.000" in line]) == 3
    for arguments in (["analyze", tmp_path / "\x1b[31m無\n"], ["push", folder, "無/é"], ["analyze", folder, "--é"]):
        failed = run(*arguments, encoding=encoding)
        assert (failed.status, failed.stdout) == (2, b"")
        (line,) = failed.stderr.decode(encoding).splitlines()
        assert line.startswith("hf-mhe: error: ")
        assert "\x1b" not in line
    for arguments in (["--help"], ["analyze", "--help"], ["quickstart", "--help"], ["--version"], ["env"], []):
        shown = run(*arguments, encoding=encoding)
        assert (shown.status, shown.stderr) == (0, b"")
        assert shown.stdout.decode(encoding)


@POSIX
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_path_of_bytes_that_are_no_characters(run: Run, tmp_path: Path, encoding: str) -> None:
    """If this failed, what lies in a folder that was named on another machine could end in a traceback."""
    model, strange = checkpoint(tmp_path / "model", "layer"), tmp_path / os.fsdecode(b"caf\xe9")
    strange.mkdir()
    files = {kind: strange / f"report.{kind}" for kind in ("json", "csv", "html")}
    options = [argument for kind, file in files.items() for argument in (f"--{kind}", file)]
    done = run("analyze", model, *options, "--plot", strange / "scores.png", encoding=encoding)
    assert done.status == 0, done.stderr
    # A name of such bytes as the source of a report is written, and read back as it was.
    report = replace(EnergyReport.load(files["json"]), source=str(strange))
    assert EnergyReport.load(report.save(files["json"])).source == str(strange)
    report.to_html(files["html"])
    assert rb"caf\udce9" in files["html"].read_bytes()
    compared = run("compare", files["json"], model, encoding=encoding)
    assert compared.status == 0, compared.stderr
    assert rb"caf\udce9" in compared.stdout
    # safetensors opens no file under such a name: that is said, in one line.
    failed = run("analyze", checkpoint(strange, "layer", made_in=model), encoding=encoding)
    assert (failed.status, failed.stdout, failed.stderr.count(b"\n")) == (2, b"", 1)
    assert rb"caf\udce9" in failed.stderr


def test_an_internal_error_is_not_a_failed_check(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a script would take a bug of ours for a model that is too redundant."""
    import hf_mhe

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("層\x1b is impossible")

    monkeypatch.setattr(hf_mhe, "analyze", broken)
    done = run("analyze", checkpoint(tmp_path, "layer"), encoding="cp1252")
    assert (done.status, done.stdout) == (70, b"")
    lines = done.stderr.decode("cp1252").splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:-1] == [r"RuntimeError: \u5c64\x1b is impossible"]
    assert "please report this" in lines[-1]


def test_progress_on_a_terminal_takes_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a layer called [/x] would stop an analysis that somebody watches, or a name move the cursor."""
    for encoding in ENCODINGS:
        screen = io.BytesIO()
        stream = io.TextIOWrapper(screen, encoding=encoding, errors="backslashreplace")
        monkeypatch.setattr(sys, "stderr", stream)
        terminal = Console(file=stream, force_terminal=True, width=200, legacy_windows=False)
        monkeypatch.setattr(console, "Console", lambda *, stderr, terminal=terminal: terminal)
        with console.progress_on_stderr() as progress:
            for done, name in enumerate(STRANGE):
                progress(done, len(STRANGE), name)
                assert terminal.file is stream
        stream.flush()
        drawn = screen.getvalue().decode(encoding)
        assert "[/bold]" in drawn or r"a\tb" in drawn
        assert "\x1b[31mb" not in drawn


def process(*arguments: str | Path, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program in a process of its own, through a shell that redirects its streams."""
    command = " ".join([sys.executable, "-m", "hf_mhe.cli", *(f"'{argument}'" for argument in arguments), shell])
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, env={**os.environ, **environment}, timeout=200, check=False
    )


@pytest.mark.story
@POSIX
def test_in_a_process_under_another_locale(tmp_path: Path) -> None:
    """If this failed, the streams that Python makes at its start would not be those that the tests above make."""
    folder = checkpoint(tmp_path / "é層", "é", "層")
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for environment in ({"PYTHONIOENCODING": "cp1252"}, plain, {"PYTHONIOENCODING": "ascii:strict", "COLUMNS": "20"}):
        done = process("analyze", folder, **environment)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), environment
        assert rb"\u5c64" in done.stdout
        assert b"2 layers, 32 neurons" in done.stdout


@pytest.mark.story
@POSIX
@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("> /dev/full", 2, b"hf-mhe: error: [Errno 28] No space left on device\n"),
        (">&-", 2, b"hf-mhe: error: stdout is closed, there is nowhere to write the result; send it to a file or to"
         b" /dev/null\n"),
        ("2>/dev/full", 1, b""),
        ("2>&-", 1, b""),
        (">&- 2>&-", 2, b""),
        ("> >(exec 0<&-; sleep 0.1)", 141, b""),
    ],
)  # fmt: skip
def test_a_stream_that_cannot_be_written(tmp_path: Path, shell: str, status: int, said: bytes) -> None:
    """If this failed, a full disk or a closed stream would look like a failed check, or like success without output.
    Remarks that cannot be written change nothing: the check that was asked for has failed here, status 1."""
    folder = checkpoint(tmp_path, "layer")
    done = process("analyze", folder, "--fail-above", "0", shell=shell)
    stderr = re.sub(rb"^\[\d/\d\] .*\n", b"", done.stderr)  # a line of progress, where the machine is busy
    assert (done.returncode, stderr) == (status, said)


@POSIX
def test_help_and_version_on_a_full_disk() -> None:
    """If this failed, what Typer prints by itself would end in a traceback where our own output does not."""
    for arguments in (["--help"], ["--version"], []):
        done = process(*arguments, shell="> /dev/full")
        assert (done.returncode, done.stderr) == (2, b"hf-mhe: error: [Errno 28] No space left on device\n")

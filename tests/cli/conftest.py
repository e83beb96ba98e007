"""The program as a user runs it: its exit status, stdout and stderr, in this process or in one of its own.

A process of its own costs seconds of imports, and shows what this process cannot: what libraries print as they are
imported, and what Python adds at exit. So a few cases of each kind run in one, and the many messages here.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from hf_mhe.cli import main

Run = Callable[..., subprocess.CompletedProcess[str]]


class Done(NamedTuple):
    """How a run ended, and the bytes that it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run `main` in this process, on streams of an encoding as Python makes them of a pipe."""

    def call(*arguments: str | Path, encoding: str = "utf-8") -> Done:
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["hf-mhe", *map(str, arguments)])
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding=encoding, errors="backslashreplace"))
            with pytest.raises(SystemExit) as stop:
                main()
            sys.stdout.flush()
            sys.stderr.flush()
            return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def hf_mhe(run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `hf-mhe` with arguments in this process, in an empty folder; offline, with an empty cache, no terminal."""

    def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_home" / "hub"))
            for name, value in environment.items():
                patch.setenv(name, value)
            done = run(*arguments)
        return subprocess.CompletedProcess(arguments, done.status, done.stdout.decode(), done.stderr.decode())

    return call


@pytest.fixture
def hf_mhe_process(tmp_path: Path) -> Run:
    """Run `hf-mhe` with arguments in a process of its own, in an empty folder; offline, no terminal."""

    def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf_home"), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [sys.executable, "-m", "hf_mhe.cli", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    return call


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of stderr of a run on bad input; there must be nothing else."""
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1), (done.returncode, done.stdout, done.stderr)
    assert lines[0].startswith("hf-mhe: error: "), lines[0]
    return lines[0]


@pytest.fixture
def refused(hf_mhe: Run) -> Callable[..., str]:
    """Run `hf-mhe` on bad input in this process and return its one line of stderr."""
    return lambda *arguments, **environment: refusal(hf_mhe(*arguments, **environment))


@pytest.fixture
def refused_in_process(hf_mhe_process: Run) -> Callable[..., str]:
    """The same in a process of its own."""
    return lambda *arguments, **environment: refusal(hf_mhe_process(*arguments, **environment))


@pytest.fixture
def two_layers(tmp_path: Path) -> Path:
    """A checkpoint of two layers: one drawn at random, one whose neurons all lie near one direction."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(64, 32, generator=generator)
    alike = torch.ones(64, 32) + 0.5 * torch.randn(64, 32, generator=generator)
    file = tmp_path / "two.safetensors"
    prefix = "decoder.block_with_a_long_name.0.another_long_name.1"
    save_file({f"{prefix}.random.weight": random, f"{prefix}.alike.weight": alike}, file)
    return file

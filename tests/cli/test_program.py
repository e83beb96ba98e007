"""The program itself: help, version, speed of start, and the ways a process can end."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import hf_mhe as package
from hf_mhe.cli.console import emit, stdout_is_for_results

HEAVY = {"torch", "transformers", "datasets", "matplotlib", "pandas", "sklearn", "scipy", "accelerate"}


def test_help_imports_nothing_heavy() -> None:
    """Else every --help and every tab completion would take seconds."""
    code = (
        "import sys; sys.argv = ['hf-mhe', 'analyze', '--help']\n"
        "from hf_mhe.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--fail-above" in done.stdout
    loaded = set(done.stderr.split())
    assert "typer" in loaded  # the list is what was really loaded
    assert loaded & HEAVY == set()


def test_without_arguments_it_prints_its_help(hf_mhe) -> None:
    """Else a newcomer's first call would be an error."""
    bare, asked = hf_mhe(), hf_mhe("--help")
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout.split() == asked.stdout.split()
    for command in ("quickstart", "analyze", "compare", "push", "env"):
        assert command in bare.stdout


def test_version(hf_mhe_process) -> None:
    """Else a bug report could not say what it is about."""
    assert hf_mhe_process("--version").stdout == f"hf-mhe {package.__version__}\n"


def test_the_console_script_is_this_program() -> None:
    """Else `hf-mhe`, and with it `hf mhe`, would not exist after an installation."""
    from hf_mhe.cli import main

    (script,) = entry_points(group="console_scripts", name="hf-mhe")
    assert script.load() is main


@pytest.mark.slow
def test_env_names_every_version(hf_mhe_process) -> None:
    """Else the first question under every bug report would be for versions."""
    import torch

    done = hf_mhe_process("env")
    assert done.returncode == 0
    lines = dict(line.removeprefix("- ").split(": ", 1) for line in done.stdout.splitlines())
    assert lines["hf_mhe"] == package.__version__
    assert lines["torch"] == torch.__version__
    assert lines["python"] == sys.version.split()[0]
    assert {"transformers", "accelerate", "huggingface_hub", "peft", "deepspeed"} <= lines.keys()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes and signals")
def test_a_closed_pipe_ends_quietly(two_layers: Path) -> None:
    """Else `hf-mhe analyze ... | head -1` would end in a traceback, or in 1, which means that a check failed."""
    command = [sys.executable, "-m", "hf_mhe.cli", "analyze", str(two_layers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 141)


@pytest.mark.story
@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes and signals")
def test_ctrl_c_ends_with_130_and_writes_nothing(tmp_path: Path) -> None:
    """Else an interrupted quickstart would leave half a folder that looks like a result."""
    command = [sys.executable, "-m", "hf_mhe.cli", "quickstart", "--output-dir", "out"]
    # A shell's background job, which this test may be run in, has its children ignore interrupts.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, text=True, preexec_fn=heed, **pipes)
    while not ((line := process.stderr.readline()).startswith("[") and line.endswith(" Trainer\n")):
        assert line
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_stdout_holds_results_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """If this failed, a library that prints (DeepSpeed does, when imported) would break what reads our JSON."""

    @stdout_is_for_results
    def command(fault: Exception | None = None) -> None:
        print("a library speaks")
        emit("result\n")
        if fault is not None:
            raise fault

    command()
    assert capfd.readouterr() == ("result\n", "a library speaks\n")
    with pytest.raises(ValueError, match="fault"):
        command(ValueError("fault"))
    print("stdout again")
    assert capfd.readouterr() == ("result\nstdout again\n", "a library speaks\n")

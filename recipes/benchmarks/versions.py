"""This checkout and another one, each in a process of its own, which waits for its turn to measure.

The processes measure one after the other, round after round, so that what the machine does meanwhile hits them alike;
what is reported is taken within a turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

Turn = dict[str, float]


class Version:
    """A process that measures with the package of one checkout.

    Args:
        name: what it is called in the table.
        checkout: the folder with its `hf_mhe`, or None for the package that is installed.
        script: a file beside this one, which with `--turns` calls `take_turns`.
        options: of the script.
    """

    def __init__(self, name: str, checkout: str | None, script: str, options: list[str]) -> None:
        self.name = name
        environment = dict(os.environ)
        if checkout is not None:
            environment["PYTHONPATH"] = str(Path(checkout).resolve())
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), "--turns", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def turn(self, *asked: object) -> Turn:
        """What the process measures when it is asked for this."""
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        questions.write(json.dumps(asked) + "\n")
        questions.flush()
        line = answers.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process that measures ended with status {self._process.wait()}")
        taken: Turn = json.loads(line)
        return taken

    def end(self) -> None:
        """Let the process go."""
        self._process.communicate()


def versions(before: str | None, script: str, options: list[str]) -> list[Version]:
    """The other checkout, if there is one, and the installed package."""
    others = [Version("before", before, script, options)] if before else []
    return [*others, Version("now", None, script, options)]


def is_checkout(folder: str) -> bool:
    """Whether a folder has the package."""
    return os.path.isdir(os.path.join(folder, "hf_mhe"))


def take_turns(measure: Callable[..., Turn], questions: IO[str], answers: IO[str]) -> None:
    """The other side of `Version`: one turn for each line, until there are no more."""
    for line in questions:
        answers.write(json.dumps(measure(*json.loads(line))) + "\n")
        answers.flush()

"""Where text goes: results to stdout, progress and remarks to stderr; whole lines when stdout is a pipe or a file."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn, ParamSpec, Protocol, TextIO, TypeVar

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hf_mhe.cli.exit_status import EXIT_BROKEN_PIPE
from hf_mhe.cli.streams import carries_unicode, say, shown, to_nowhere
from hf_mhe.errors import MHEError

NARROWEST = 100  # columns that a table's numbers and a little of each name need
LINE_SECONDS = 2.0  # between two lines of progress in a log


# SIMPLE_HEAD in characters that every encoding has. Rich's own stand-in would put bars between the columns.
_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_kept_stdout: list[TextIO | None] = []  # what was stdout outside the command that runs; None where it was closed


def stdout_is_for_results(command: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Wrap a command so that what libraries print to stdout goes to stderr, and stdout holds what the command emits.

    DeepSpeed, for one, logs to stdout as soon as another library imports it.
    """

    @functools.wraps(command)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        _kept_stdout.append(sys.stdout)
        try:
            with redirect_stdout(sys.stderr):
                return command(*args, **kwargs)
        finally:
            _kept_stdout.pop()

    return run


def _results() -> TextIO:
    stream = _kept_stdout[-1] if _kept_stdout else sys.stdout
    if stream is None:  # the caller closed it (`>&-`)
        raise MHEError("stdout is closed, there is nowhere to write the result; send it to a file or to /dev/null")
    return stream


class ProgressCallback(Protocol):
    """What the rooms below call: `done` of `total` steps, and the name of what is being worked on."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def closed_pipe() -> NoReturn:
    """Exit quietly after the reader of stdout has gone away (`hf-mhe analyze ... | head -1`)."""
    to_nowhere(_results())
    sys.exit(EXIT_BROKEN_PIPE)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Exit with the shell's status for a closed pipe: rich's own, 1, means here that a check failed."""
        closed_pipe()


def emit(text: str) -> None:
    """Write `text` to stdout as it is, without markup, colour or wrapping; a line of data goes through `emit_line`."""
    stream = _results()
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        closed_pipe()


def emit_line(text: str) -> None:
    """Write one line to stdout, whatever characters are in it."""
    emit(shown(text, _results()) + "\n")


def emit_json(content: dict[str, Any]) -> None:
    """Write JSON to stdout: its own escapes stand for what the stream cannot carry, so that it stays JSON."""
    ascii_only = not carries_unicode(_results())
    emit(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=ascii_only) + "\n")


def note(text: str) -> None:
    """Write one line to stderr."""
    say(text)


def cell(name: str) -> Text:
    """A name for a table: no markup ([0] stays [0]), and nothing that would break the table."""
    return Text(shown(name, _results()))


def print_table(heading: str, table: Table) -> None:
    """Print a table under its heading: to a terminal's width, else unwrapped, so that `grep` finds whole names."""
    console = _Console(file=_results())
    # A terminal too narrow for the numbers breaks lines; rich would drop the column of names.
    width = max(console.width, NARROWEST)
    if not console.is_terminal:
        width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console = _Console(file=_results(), width=width)
    console.print(Text(shown(heading, _results()), style="bold"), soft_wrap=True)
    console.print(table)


def plain_table() -> Table:
    """Return a table with one rule under its header, and no other lines."""
    box = SIMPLE_HEAD if carries_unicode(_results()) else _ASCII_HEAD
    return Table(box=box, pad_edge=False, collapse_padding=True)


@contextmanager
def progress_on_stderr() -> Iterator[ProgressCallback]:
    """Give a callback that shows progress on stderr: a bar on a terminal, else a line every few seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bars(progress)


class _Bars:
    """One rich bar per phase. A new phase counts from its beginning again; within one, the name may change."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._last = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._task is None or done < self._last:
            self._task = self._progress.add_task("", total=total)
        self._last = done
        self._progress.update(self._task, completed=done, description=shown(what, sys.stderr))


class _Lines:
    """A line now and then, for logs: what is quickly done says nothing."""

    def __init__(self) -> None:
        self._last: float | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if self._last is None:
            self._last = now
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            note(f"[{done}/{total}] {what}")

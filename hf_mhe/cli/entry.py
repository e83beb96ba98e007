"""The entry of the console script: runs the application and turns what it raises into an exit status."""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

import typer

from hf_mhe.cli.app import app
from hf_mhe.cli.console import closed_pipe
from hf_mhe.cli.exit_status import EXIT_BAD_INPUT, EXIT_INTERNAL_ERROR, EXIT_INTERRUPTED
from hf_mhe.cli.streams import let_any_text_through, say, to_nowhere
from hf_mhe.errors import MHEError
from hf_mhe.text import one_line

# The base class of everything typer raises about a command line. typer has moved its home (click, later its own copy),
# so it is taken from the public exception that derives from it.
_CommandLineError: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


def main() -> NoReturn:
    """Run `hf-mhe` on `sys.argv` and exit: 0 done; 1 the check that was asked for failed; 2 bad input; 70 a bug.

    Bad input is one line on stderr, `hf-mhe: error: ...`, without a traceback. An exception that is nobody's bad input
    is a bug, and keeps its traceback; its status is never 1, which a script takes for a failed check.
    """
    let_any_text_through()
    try:
        status = app(prog_name="hf-mhe", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        closed_pipe()
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except _CommandLineError as error:
        # Typer 0.29 puts a validator's prefix in front of what the allowed values are.
        _fail(error.format_message().replace("Value error, ", ""))  # type: ignore[attr-defined]
    except (MHEError, OSError) as error:
        # OSError: what the system or the Hub refused (permission, disk full, no such repository), never a bug of ours.
        _fail(one_line(error))
    except Exception:
        _report_bug()
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    _give_up_unwritable_stdout()
    say("hf-mhe: error: " + one_line(message))
    sys.exit(EXIT_BAD_INPUT)


def _report_bug() -> NoReturn:
    for line in traceback.format_exc().splitlines():
        say(line)
    say("hf-mhe: internal error: please report this, with the output of `hf-mhe env`")
    _give_up_unwritable_stdout()
    sys.exit(EXIT_INTERNAL_ERROR)


def _give_up_unwritable_stdout() -> None:
    """After an error, see whether stdout takes what it still holds (a full disk does not): Python tries at exit."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        to_nowhere(sys.stdout)

"""The typer application: which commands there are."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_mhe._version import __version__
from hf_mhe.cli.analyze import analyze_command
from hf_mhe.cli.compare import compare_command
from hf_mhe.cli.console import emit, stdout_is_for_results
from hf_mhe.cli.env import env_command
from hf_mhe.cli.push import push_command
from hf_mhe.cli.quickstart import quickstart_command

app = typer.Typer(
    name="hf-mhe",
    help="Measure how redundantly the neurons of a checkpoint point, fine-tune so that they spread out, publish it.",
    epilog="Exit status: 0 done; 1 the check that was asked for failed (analyze --fail-above); 2 bad input; 70 a bug.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        emit(f"hf-mhe {__version__}\n")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Measure how redundantly the neurons of a checkpoint point, fine-tune so that they spread out, publish it."""
    if context.invoked_subcommand is None:
        emit(context.get_help())
        raise typer.Exit()


app.command("quickstart")(stdout_is_for_results(quickstart_command))
app.command("analyze")(stdout_is_for_results(analyze_command))
app.command("compare")(stdout_is_for_results(compare_command))
app.command("push")(stdout_is_for_results(push_command))
app.command("env")(stdout_is_for_results(env_command))

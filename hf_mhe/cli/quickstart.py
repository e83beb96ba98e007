"""`hf-mhe quickstart`: the whole story on data that ships with a dependency, no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table
from rich.text import Text

from hf_mhe.cli import options
from hf_mhe.cli.console import cell, emit_line, plain_table, print_table, progress_on_stderr
from hf_mhe.cli.tables import number

if TYPE_CHECKING:
    from hf_mhe.analysis import EnergyReport
    from hf_mhe.quickstart import QuickstartResult


def quickstart_command(
    output_dir: Annotated[Path, typer.Option(help="Folder to write models, reports, figures and card to.")] = Path(
        "quickstart"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same numbers.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    push_to_hub: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="REPO_ID", help="Publish the folder in one commit to this repository.", show_default=False
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push-to-hub: a private repository.")] = False,
    token: options.Token = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of the same names in a folder that is not empty.")
    ] = False,
) -> None:
    """Widen a small ResNet by copies, train it on plain and with MHE, and write a publishable folder.

    Real images that ship with scikit-learn; no network, about a minute on two cores.
    """
    from hf_mhe.quickstart import run
    from hf_mhe.quickstart.data import TEST_IMAGES, TRAIN_IMAGES, check_installed
    from hf_mhe.quickstart.model import COPIES

    check_installed()
    import datasets
    from transformers.utils import logging

    # This command shows bars of its own.
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with progress_on_stderr() as progress:
        result = run(
            output_dir,
            seed=seed,
            epochs=epochs,
            push_to_hub=push_to_hub,
            private=private or None,
            token=token,
            overwrite=overwrite,
            progress=progress,
        )
    narrow = f"{100 * result.narrow_accuracy:.2f} %"
    images = f"{TRAIN_IMAGES} handwritten digits, tested on {TEST_IMAGES}"
    grown = f"Small ResNet, {narrow}, each channel copied {COPIES} times"
    more = f"{epochs} epoch{'s' if epochs > 1 else ''} more"
    print_table(f"{grown}: {more} on {images}, seed {seed}", result_table(result))
    emit_line(
        f"Written to {result.folder}: the MHE model (the plain one in plain/), reports, comparison.html, model card"
    )
    if result.commit is not None:
        emit_line(f"Published: {result.commit.commit_url}")


def result_table(result: QuickstartResult) -> Table:
    """Accuracy, copies and spread of the two trainings, side by side."""
    table = plain_table()
    table.add_column("")
    table.add_column("Trainer", overflow="fold")
    table.add_column("MHETrainer", overflow="fold")
    both = (result.plain, result.mhe)
    table.add_row("test accuracy", *(f"{100 * trained.accuracy:.2f} %" for trained in both))
    table.add_row("pairs of copies", *(str(trained.report.summary.near_duplicates) for trained in both))
    table.add_row("mean spread", *(number(trained.report.summary.mean_spread, 3) for trained in both))
    table.add_row("most crowded layer", *(_most_crowded(trained.report) for trained in both))
    return table


def _most_crowded(report: EnergyReport) -> Text:
    summary = report.summary
    return cell(f"{summary.most_crowded} ({number(summary.lowest_spread, 3)})")

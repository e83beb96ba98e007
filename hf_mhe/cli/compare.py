"""`hf-mhe compare`: two checkpoints, or two saved reports, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from hf_mhe.cli import options
from hf_mhe.cli.console import emit_line, note, print_table, progress_on_stderr
from hf_mhe.cli.outputs import check_outputs
from hf_mhe.cli.tables import comparison_table, number

if TYPE_CHECKING:
    from hf_mhe.analysis import Comparison

_SIDE = "Folder, .safetensors file, saved report (.json), or Hub repository"


def compare_command(
    before: Annotated[
        str, typer.Argument(metavar="BEFORE", help=f"{_SIDE}: the one to start from.", show_default=False)
    ],
    after: Annotated[str, typer.Argument(metavar="AFTER", help=f"{_SIDE}: the one it became.", show_default=False)],
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write the comparison as JSON."),
    ] = None,
    csv: options.Csv = None,
    html: options.Html = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
) -> None:
    """Set two checkpoints side by side, layer by layer: what training did to the neurons."""
    check_outputs(json=json, csv=csv, html=html)

    import hf_mhe

    with progress_on_stderr() as progress:
        comparison = hf_mhe.compare(before, after, token=token, cache_dir=cache_dir, progress=progress)
    if json is not None:
        comparison.save(json)
    if csv is not None:
        comparison.to_csv(csv)
    if html is not None:
        comparison.to_html(html)
    heading = f"{comparison.before.source} -> {comparison.after.source}: {comparison.after.potential.describe()}"
    print_table(heading, comparison_table(comparison))
    emit_line(summary_line(comparison))
    for remark in comparison.notes:
        note(f"note: {remark}")
    for side, report in (("before", comparison.before), ("after", comparison.after)):
        for remark in report.notes:
            note(f"note: {side}: {remark}")
    for side, names in (("before", comparison.only_before), ("after", comparison.only_after)):
        for name in names:
            note(f"only {side}: {name}")


def summary_line(comparison: Comparison) -> str:
    """One line: the mean spread and score before and after, and how many layers improved."""
    summary = comparison.summary
    apart = f"; {summary.after.apart} apart, whose neurons do not compete" if summary.after.apart else ""
    return (
        f"{len(comparison.rows)} layers; mean spread {number(summary.before.mean_spread, 3)} -> "
        f"{number(summary.after.mean_spread, 3)}; mean score {number(summary.before.mean_score, 3)} -> "
        f"{number(summary.after.mean_score, 3)}; {summary.improved} improved, {summary.worsened} worsened, "
        f"{summary.unchanged} unchanged{apart}"
    )

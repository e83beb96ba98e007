"""`hf-mhe analyze`: how redundantly the neurons of a checkpoint point."""

from __future__ import annotations

import math
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from hf_mhe.cli import options
from hf_mhe.cli.console import cell, emit_json, emit_line, note, plain_table, print_table, progress_on_stderr
from hf_mhe.cli.exit_status import EXIT_CHECK_FAILED
from hf_mhe.cli.outputs import check_outputs
from hf_mhe.cli.tables import number, table_of
from hf_mhe.errors import MHEError

if TYPE_CHECKING:
    from hf_mhe.analysis import EnergyReport, GroupEnergy, StackEnergy


_UNREAD = "or over 5% of the weights, or an unknown share, are not read"


def analyze_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder, .safetensors file, Hub repository, or vectors: .npy, a saved dataset, .parquet, .jsonl.",
            show_default=False,
        ),
    ],
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write the report as JSON; '-' prints it instead of the table."),
    ] = None,
    csv: options.Csv = None,
    html: options.Html = None,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Draw the spreads (.png, .svg, .pdf)."),
    ] = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Column of a dataset that has the vectors."),
    ] = None,
    by_head: Annotated[bool, typer.Option("--by-head", help="Each attention head's q, k and v apart.")] = False,
    aggregate: Annotated[
        bool, typer.Option("--aggregate", help="Table and CSV with one row for all experts, or heads, of a matrix.")
    ] = False,
    s: Annotated[float, typer.Option("--s", help="Exponent of the energy, >= 0.")] = 2.0,
    distance: Annotated[options.Distance, typer.Option(help="Distance on the sphere.")] = options.EUCLIDEAN,
    space: Annotated[
        options.Space, typer.Option(help="Half space: a neuron and its mirror image count alike.")
    ] = options.FULL,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="Also the spectral norm and the ranks of each layer.")
    ] = False,
    variants: Annotated[
        bool, typer.Option("--variants", help="Also the scores under the paper's twelve potentials.")
    ] = False,
    top: Annotated[Optional[int], typer.Option(min=1, help="Print only the N most crowded layers.")] = None,  # noqa: UP045
    explain: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="LAYER", help="Say what the numbers of this layer mean; may be given several times."),
    ] = None,
    fail_below: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="SPREAD",
            help=f"Exit with status 1 if any layer's spread is below this, {_UNREAD}.",
        ),
    ] = None,
    fail_above: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="SCORE",
            help=f"Exit with status 1 if any layer's score is above this, {_UNREAD}.",
        ),
    ] = None,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List the parameters that were skipped.")] = False,
) -> None:
    """Measure how redundantly the neurons of a checkpoint point, layer by layer, most crowded first."""
    json_to_stdout = json is not None and str(json) == "-"
    check_outputs(json=None if json_to_stdout else json, csv=csv, html=html, plot=plot)
    if fail_above is not None and not math.isfinite(fail_above):
        raise MHEError(f"--fail-above {fail_above}: a finite score is right, such as 1.5")
    if fail_below is not None and not 0 < fail_below < math.inf:
        raise MHEError(f"--fail-below {fail_below}: a finite spread above 0 is right, such as 0.5")

    import hf_mhe

    with progress_on_stderr() as progress:
        report = hf_mhe.analyze(
            model,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            s=s,
            distance=distance.value,
            space=space.value,
            include=include or None,
            exclude=exclude or None,
            by_head=by_head,
            column=column,
            spectrum=spectrum,
            variants=variants,
            progress=progress,
        )
    explained = [_group(report, name) for name in explain or ()]
    above = [] if fail_above is None else _above(report, fail_above)
    below = [] if fail_below is None else _below(report, fail_below)
    limits = {"--fail-above": fail_above, "--fail-below": fail_below}
    checks = [f"{option} {limit:g}" for option, limit in limits.items() if limit is not None]
    unseen = _unseen(report, " and ".join(checks)) if checks else None
    if json is not None and not json_to_stdout:
        report.save(json)
    if csv is not None:
        report.to_csv(csv, aggregate=aggregate)
    if html is not None:
        report.to_html(html)
    if plot is not None:
        report.plot(plot)
    if json_to_stdout:
        emit_json(report.to_dict())
        for group in explained:
            for line in _explanation(group, report):
                note(line)
    else:
        title = f"{report.source}: {report.potential.describe()}"
        if aggregate:
            print_table(title, stack_table(report.aggregated, top))
        else:
            print_table(title, report_table(report.competing, top))
            if report.stacks:
                print_table("experts and heads, each stack together", stack_table(report.stacks, top))
            if variants:
                print_table("score under the paper's twelve potentials (a: angles)", variant_table(report, top))
            if report.apart:
                print_table("rows that do not compete, and stay out of the ranking", report_table(report.apart, top))
        emit_line(summary_line(report))
        for group in explained:
            for line in _explanation(group, report):
                emit_line(line)
        for remark in report.notes:
            note(f"note: {remark}")
    if verbose:
        for name, reason in sorted(report.skipped.items()):
            note(f"skipped {name}: {reason}")
    for name, score in above:
        note(f"above {fail_above:g}: {name} has score {score:.3f}")
    for name, spread in below:
        note(f"below {fail_below:g}: {name} has spread {spread:.3f}")
    if unseen is not None:
        note(unseen)
    if above or below or unseen is not None:
        raise typer.Exit(EXIT_CHECK_FAILED)


def report_table(groups: list[GroupEnergy], top: int | None) -> Table:
    """The table of groups of a report, most crowded first; the `top` first of them, all if None."""
    from hf_mhe.analysis import GroupEnergy

    return table_of(GroupEnergy, groups[:top])


def variant_table(report: EnergyReport, top: int | None) -> Table:
    """The scores of a report's groups under each potential that they were measured with."""
    table = plain_table()
    table.add_column("layer", overflow="fold")
    shown = report.competing[:top]
    for variant in shown[0].variants if shown else ():
        table.add_column(variant.label, justify="right", no_wrap=True)
    for group in shown:
        table.add_row(cell(group.name), *(number(variant.score, 3) for variant in group.variants))
    return table


def stack_table(stacks: list[StackEnergy], top: int | None) -> Table:
    """The table of stacks of experts and heads, most crowded first; the `top` first of them, all if None."""
    from hf_mhe.analysis import StackEnergy

    return table_of(StackEnergy, stacks[:top])


def summary_line(report: EnergyReport) -> str:
    """One line: how many layers and neurons, mean spread and score, the most crowded layer, what was left out."""
    summary = report.summary
    parts = [
        f"{summary.groups} layers, {summary.neurons} neurons",
        f"mean spread {number(summary.mean_spread, 3)}{_by_role(report)}",
        f"most crowded {summary.most_crowded} ({number(summary.lowest_spread, 3)})"
        if summary.most_crowded is not None
        else "no layer has a spread",
        f"mean score {number(summary.mean_score, 3)}",
        f"{summary.near_duplicates} near-duplicate pairs, {summary.dead} dead neurons",
        f"{summary.skipped} parameters skipped",
    ]
    if summary.apart:
        parts.append(f"{summary.apart} layers apart, whose neurons do not compete")
    return "; ".join(parts)


def _by_role(report: EnergyReport) -> str:
    """The mean spread of each role, where there is more than one: embeddings would hide the rest."""
    roles = report.summary.by_role
    if len(roles) < 2:
        return ""
    return " (" + ", ".join(f"{role} {number(roles[role].mean_spread, 3)}" for role in sorted(roles)) + ")"


def _group(report: EnergyReport, name: str) -> GroupEnergy:
    """The layer to explain.

    Raises:
        MHEError: no layer has this name; the nearest names are given.
    """
    names = [group.name for group in report.groups]
    if name not in names:
        near = get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        raise MHEError(
            f"--explain {name}: no layer of {report.source} has this name; the nearest are {', '.join(near)}"
        )
    return report[name]


def _explanation(group: GroupEnergy, report: EnergyReport) -> list[str]:
    from hf_mhe.analysis.report.explain import explain

    return ["", f"{group.name}: {group.verdict}", *explain(group, duplicate_cosine=report.duplicate_cosine)]


def _unseen(report: EnergyReport, checks: str) -> str | None:
    """Why the checks fail on what could not be measured; None where that is no considerable part."""
    from hf_mhe.analysis.report.unseen import described, is_considerable

    if not is_considerable(report.unseen):
        return None
    share = described(report.unseen)
    return f"{checks} does not pass: {share} could not be measured (--verbose lists them)"


def _above(report: EnergyReport, limit: float) -> list[tuple[str, float]]:
    """The names and scores of the layers whose score is above `limit`.

    Raises:
        MHEError: no layer has a score, so that nothing can be held against the limit.
    """
    _check_competing(report, f"--fail-above {limit:g}")
    scored = [(group.name, group.score) for group in report.competing if group.score is not None]
    if not scored:
        raise MHEError(
            f"--fail-above {limit:g} cannot be checked: no layer has a score for {report.potential.describe()} "
            "(the expected energy diverges); choose a smaller --s"
        )
    if len(scored) < len(report.competing):
        note(f"--fail-above: {len(report.competing) - len(scored)} layers have no score and were not checked")
    return [(name, score) for name, score in scored if score > limit]


def _below(report: EnergyReport, limit: float) -> list[tuple[str, float]]:
    """The names and spreads of the layers whose spread is below `limit`.

    Raises:
        MHEError: there is no layer to check.
    """
    _check_competing(report, f"--fail-below {limit:g}")
    measured = [(group.name, group.spread) for group in report.competing if group.spread is not None]
    return [(name, spread) for name, spread in measured if spread < limit]


def _check_competing(report: EnergyReport, check: str) -> None:
    if not report.competing:
        raise MHEError(f"{check} cannot be checked: the rows of all layers of {report.source} do not compete")

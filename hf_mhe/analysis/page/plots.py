"""The figures of a report and of a comparison, for files and for the HTML page.

Figures are made through matplotlib's objects, never through pyplot: drawing one changes no setting of the caller's.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mhe.analysis.report.files import write_atomic
from hf_mhe.errors import MHEError
from hf_mhe.extras import missing_extra
from hf_mhe.text import escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_mhe.analysis.page.subjects import Comparison, Report, Row
    from hf_mhe.analysis.report.group_energy import GroupEnergy

# Okabe and Ito's palette, told apart with every common kind of colour blindness; shapes repeat what colours say.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, FAINT = "#222222", "#8a8a8a"
_ROLES = {"hidden": (BLUE, "o"), "output": (VERMILLION, "s"), "embedding": (GREEN, "^")}
_VERDICTS = {"improved": BLUE, "worsened": VERMILLION, "unchanged": FAINT, "not scored": FAINT}

MOST_ROWS = 80
"""More rows than this cannot be read in one figure: the most crowded ones are drawn, and the title says so."""

FEWEST_PAIRS = 400
"""Fewer pairs than this make no histogram."""

_MOST_SPREAD = 10.0
"""Beyond it lie all but orthogonal neurons, up to infinity: one such layer must not flatten the rest."""

_FORMATS = (".png", ".svg", ".pdf")
_ROW_INCHES = 0.19
_LABEL_CHARACTERS = 62


def report_figure(report: Report) -> Figure:
    """The spread of every group whose neurons compete, most crowded at the top, from a random draw.

    Raises:
        MHEError: no group has a spread.
    """
    measured = [group for group in report.competing if group.spread is not None]
    if not measured:
        why = "an earlier version wrote the report" if report.competing else "the neurons of none of them compete"
        raise MHEError(f"{report.source}: no group has a spread to draw; {why}")
    rows = measured[:MOST_ROWS]
    figure, axes = _dot_plot(
        [group.name for group in rows],
        [_spread(group) for group in rows],
        _title(_shortened(short_source(report.source), 50), len(rows), len(measured)),
    )
    for role, (colour, marker) in _ROLES.items():
        at = [place for place, group in enumerate(rows) if group.role == role]
        if not at:
            continue
        values = [_spread(rows[place]) for place in at]
        axes.hlines(at, [1.0] * len(at), values, color=colour, linewidth=1.4, alpha=0.55, zorder=2)
        axes.scatter(values, at, s=26, color=colour, marker=marker, label=role, zorder=3, linewidths=0)
    _legend(axes)
    return figure


def comparison_figure(comparison: Comparison) -> Figure:
    """Every group's spread before (hollow) and after (filled), joined: which layers spread out, which closed up.

    Raises:
        MHEError: no group has a spread on both sides.
    """
    compared = [row for row in comparison.rows if row.after.apart is None]
    measured = [row for row in compared if row.before.spread is not None and row.after.spread is not None]
    if not measured:
        why = "an earlier version wrote one of the reports" if compared else "the neurons of none of them compete"
        raise MHEError(f"no group has a spread on both sides to draw; {why}")
    measured.sort(key=lambda row: min(_spread(row.before), _spread(row.after)))
    rows = measured[:MOST_ROWS]
    figure, axes = _dot_plot(
        [row.name for row in rows],
        [_spread(side) for row in rows for side in (row.before, row.after)],
        _title(
            " → ".join(_shortened(short_source(side.source), 30) for side in (comparison.before, comparison.after)),
            len(rows),
            len(measured),
        ),
    )
    _dumbbells(axes, rows)
    _legend(axes)
    return figure


def _dumbbells(axes: Axes, rows: list[Row]) -> None:
    for verdict, colour in _VERDICTS.items():
        at = [place for place, row in enumerate(rows) if row.verdict == verdict]
        if not at:
            continue
        before = [_spread(rows[place].before) for place in at]
        after = [_spread(rows[place].after) for place in at]
        axes.hlines(at, before, after, color=colour, linewidth=1.8, alpha=0.6, zorder=2)
        axes.scatter(before, at, s=26, facecolors="white", edgecolors=colour, linewidths=1.3, zorder=3)
        axes.scatter(after, at, s=28, color=colour, linewidths=0, zorder=4, label=f"{verdict} ({len(at)})")
    axes.scatter([], [], s=26, facecolors="white", edgecolors=INK, linewidths=1.3, label="before")
    axes.scatter([], [], s=28, color=INK, linewidths=0, label="after")


def cosine_figure(report: Report, most: int = 6) -> Figure:
    """How the cosines of all pairs spread in the most crowded groups, beside what independent directions would give.

    Raises:
        MHEError: no group has pairs enough for a histogram.
    """
    groups = [group for group in report.competing if sum(group.histogram) >= FEWEST_PAIRS][:most]
    if not groups:
        raise MHEError(f"{report.source}: no group has the {FEWEST_PAIRS} pairs of neurons that a histogram takes")
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = _figure(3.3 * columns + 0.4, 2.1 * lines + 0.7)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(groups):
            axes.remove()
            continue
        _histogram(axes, groups[place])
        _style(axes)
        if place % columns == 0:
            axes.set_ylabel("share of pairs", fontsize=8, color=INK)
        if place + columns >= len(groups):
            axes.set_xlabel("cosine between two neurons", fontsize=8, color=INK)
            axes.tick_params(labelbottom=True)
    title = f"Cosines of all pairs: {_shortened(short_source(report.source), 50)}"
    figure.suptitle(title, fontsize=10.5, color=INK, x=0.01, ha="left")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _histogram(axes: Axes, group: GroupEnergy) -> None:
    import numpy
    from matplotlib.ticker import LogLocator, NullLocator

    counts = numpy.asarray(group.histogram, dtype=float)
    edges = numpy.linspace(-1.0, 1.0, len(counts) + 1)
    pairs = counts.sum()
    axes.stairs(counts / pairs, edges, fill=True, color=BLUE, alpha=0.55, label="this layer")
    axes.stairs(random_shares(edges, group.d), edges, color=VERMILLION, linewidth=1.3, label="independent directions")
    # From one pair in all to all pairs: a single near-duplicate is still to be seen.
    axes.set_yscale("log")
    axes.set_ylim(0.5 / pairs, 1.5)
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-1.0, 1.0)
    axes.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
    axes.set_title(_shortened(group.name, 40), fontsize=8, color=INK, loc="left")


def random_shares(edges: Any, d: int) -> Any:
    """The share of pairs of independent uniform directions in dimension d whose cosine falls in each bin.

    (1 + c) / 2 of such a cosine follows Beta((d − 1)/2, (d − 1)/2).
    """
    import numpy
    from scipy.stats import beta

    half = (d - 1) / 2
    return numpy.diff(beta.cdf((numpy.asarray(edges) + 1) / 2, half, half))


def _dot_plot(names: list[str], values: list[float], title: str) -> tuple[Figure, Axes]:
    """An empty chart with one row per name and a logarithmic axis of spread that shows 1 and every value."""
    figure = _figure(8.6, max(2.4, 1.35 + _ROW_INCHES * len(names)))
    axes = figure.add_subplot()
    # Logarithmic: half and twice the dimensions are as far from a random draw.
    ladder = [step * 10.0**power for power in range(-9, 3) for step in (1, 2, 5)]
    low = max(tick for tick in ladder if tick <= min(0.5, *values))
    high = min(tick for tick in ladder if tick >= max(2.0, *values))
    ticks = [tick for tick in ladder if low <= tick <= high]
    if len(ticks) > 12:
        ticks = [tick for tick in ticks if f"{tick:.0e}".startswith("1")]
    margin = (high / low) ** 0.03
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    axes.set_xticks(ticks, [f"{tick:g}" if tick < _MOST_SPREAD else f"≥ {tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), _labels(names), fontsize=7.5)
    # Over the whole figure: long module names leave the axes no room for a title of their own.
    figure.suptitle(title, fontsize=10.5, color=INK, x=0.01, ha="left")
    axes.set_xlabel("spread: equivalent dimension / dimension", fontsize=9, color=INK)
    axes.axvline(1.0, color=INK, linewidth=0.9, zorder=1)
    axes.annotate(
        "random", (1.0, 1.0), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="center", va="bottom", fontsize=7.5, color=INK,
    )  # fmt: skip
    _style(axes)
    axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.6, zorder=0)
    return figure, axes


def why_no_figures() -> str | None:
    """Why nothing can be drawn, with what to install; None where matplotlib is there."""
    return missing_extra("a figure", "plots", "matplotlib")


def _figure(width: float, height: float) -> Figure:
    if (reason := why_no_figures()) is not None:
        raise MHEError(reason)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=7.5, length=3)
    axes.tick_params(axis="y", length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=6, frameon=False, fontsize=7.5, labelcolor=INK,
        handletextpad=0.2, columnspacing=1.0, borderaxespad=2.2,
    )  # fmt: skip


def _spread(group: GroupEnergy) -> float:
    """A group's spread as it is drawn: neurons that are all but orthogonal at the end of the axis."""
    if group.spread is None:
        raise MHEError(f"group {group.name} has no spread to draw")
    return min(group.spread, _MOST_SPREAD)


def _title(source: str, drawn: int, groups: int) -> str:
    what = "Spread of neurons by layer" if drawn == groups else f"The {drawn} most crowded of {groups} layers"
    return f"{what}: {source}"


def short_source(source: str) -> str:
    """A path by its last two folders, a repo id as it is."""
    return "/".join(Path(source).parts[-2:]) if os.path.isabs(source) else source


def _labels(names: list[str]) -> list[str]:
    """The names as they fit beside the rows: where one is too long, all lose the modules that they begin with."""
    if max(map(len, names)) > _LABEL_CHARACTERS:
        modules = [name.split(".") for name in names]
        shared = 0
        while all(len(path) > shared + 1 for path in modules) and len({path[shared] for path in modules}) == 1:
            shared += 1
        if shared:
            names = ["…" + ".".join(path[shared:]) for path in modules]
    return [_shortened(name, _LABEL_CHARACTERS) for name in names]


def _shortened(text: str, most: int) -> str:
    """The text with its middle left out, since module names differ at both ends, and with no mathematics in it."""
    text = escaped(text)
    if len(text) > most:
        head = (most - 1) // 2
        text = f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
    return text.replace("$", r"\$")


def figure_bytes(figure: Figure, suffix: str) -> bytes:
    """The figure as a file of the format that `suffix` names; the same figure gives the same bytes.

    Raises:
        MHEError: a suffix that is none of .png, .svg, .pdf.
    """
    import matplotlib

    if suffix not in _FORMATS:
        raise MHEError(f"figures are saved as {', '.join(_FORMATS)}; got {suffix or 'no suffix'!r}")
    stream = io.BytesIO()
    # Dates and random ids would make every run's file another one.
    undated: dict[str, Any] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None, "ModDate": None}}[
        suffix
    ]
    with matplotlib.rc_context({"svg.hashsalt": "hf_mhe", "svg.fonttype": "none"}):
        figure.savefig(stream, format=suffix[1:], metadata=undated)
    return stream.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure whole or not at all, in the format that the suffix names.

    Raises:
        MHEError: an unknown suffix, a file that cannot be written.
    """
    return write_atomic(path, figure_bytes(figure, Path(path).suffix.lower()))

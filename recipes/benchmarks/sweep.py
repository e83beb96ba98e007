"""How many times its floor the exact energy takes, over the number of neurons, now and in another checkout.

`python recipes/benchmarks/energy.py --sweep` calls it.
"""

from __future__ import annotations

import csv
import statistics

from versions import Turn, Version

N = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
D = (384, 768, 2048)
SMALL = 1536  # neurons, up to which a call takes milliseconds, and scatters
Row = dict[str, object]


def sweep(versions: list[Version], sizes: list[tuple[int, int]], variant: str, rounds: int) -> list[Row]:
    """One row for each shape and version, medians over the rounds, four times as many for small shapes.

    The first round is the warm-up.
    """
    rows = []
    for n, d in sizes:
        count = 1 + rounds * (4 if n <= SMALL else 1)
        turns = [[version.turn(n, d, variant) for version in versions] for _ in range(count)][1:]
        for version, taken in zip(versions, zip(*turns, strict=True), strict=True):
            row = {"n": n, "d": d, "variant": variant, "version": version.name, **_ratios(taken)}
            rows.append(row)
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    return rows


def _ratios(turns: tuple[Turn, ...]) -> Row:
    median = statistics.median
    return {
        "exact_ms": round(median(t["exact"] for t in turns) * 1e3, 3),
        "exact_over_floor": round(median(t["exact"] / (t["cosines"] + t["gradient"]) for t in turns), 3),
        "value_ms": round(median(t["forward"] for t in turns) * 1e3, 3),
        "value_over_floor": round(median(t["forward"] / t["cosines"] for t in turns), 3),
    }


def write_csv(rows: list[Row], path: str) -> None:
    """The rows as they were printed."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw(rows: list[Row], path: str) -> None:
    """Both ratios over n: a colour for each d, broken lines for the checkout before."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    titles = {"exact_over_floor": "energy and gradient", "value_over_floor": "value alone"}
    dimensions = sorted({int(str(row["d"])) for row in rows})
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for colour, d in enumerate(dimensions):
            for version in dict.fromkeys(str(row["version"]) for row in rows):
                points = [(row["n"], row[key]) for row in rows if row["d"] == d and row["version"] == version]
                dashed = "--" if version == "before" else "-"
                axes.plot(
                    *zip(*points, strict=True), dashed, color=f"C{colour}", marker=".", label=f"d = {d}, {version}"
                )
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set(title=title, xlabel="neurons", xscale="log")
        axes.set_xticks([n for n in N if n in {row["n"] for row in rows}], minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.tick_params(axis="x", rotation=60)
    panels[0].set_ylabel("time over that of its products alone")
    panels[1].legend(fontsize=8)
    figure.savefig(path, dpi=150)

"""Numbers and tables as the documents write them, and the place between two markers where they stand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from harness.statistics.inference import Paired, interval


def mean(values: Sequence[float]) -> str:
    """The mean and the half width of its 95 % interval; nothing of no values."""
    if not values:
        return ""
    middle, half = interval(values)
    return f"{middle:.2f}" if math.isnan(half) else f"{middle:.2f} ± {half:.2f}"


def difference(each: Paired) -> str:
    """The mean difference with its 95 % t interval."""
    return f"{each.mean:+.2f}" + ("" if math.isnan(each.low) else f" ({each.low:+.2f} to {each.high:+.2f})")


def probability(value: float | None) -> str:
    """A p to three decimals, a small one as a power of ten."""
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def number(value: float | None, digits: int) -> str:
    """A number to so many decimals, nothing of None."""
    return "" if value is None else f"{value:.{digits}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A table whose first `left` columns are aligned to the left."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows])


def replaced(document: str, place: str, text: str) -> str:
    """The document with `text` between the markers of a place.

    Raises:
        ValueError: the markers are not there, or not once.
    """
    begin, end = f"<!-- {place}: written by tables.py -->", f"<!-- end of {place} -->"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    found = len(pattern.findall(document))
    if found != 1:
        raise ValueError(f"the document must have {begin!r} and {end!r} once; it has them {found} times")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", document)


def places(document: str) -> list[str]:
    """The marked places; each is called by the experiments that stand in it, with spaces between them."""
    return re.findall(r"<!-- ([\w ]+): written by tables.py -->", document)

"""Markdown that shows any name as it is: module names, paths and metric names are data, never markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hf_mhe.text import number as _number
from hf_mhe.text import one_line

# GitHub's flavour, CommonMark 0.31 section 2.4: any of these may be escaped by a backslash.
_MARKUP = re.compile(r"([\\`*_\[\]<>#|~$&])")


def text(value: object) -> str:
    """A value as running text on one line, with everything that Markdown or HTML would act on escaped."""
    return _MARKUP.sub(r"\\\1", one_line(str(value)))


def code(value: object) -> str:
    """A value as inline code on one line, also inside a table cell and with backticks in it."""
    line = one_line(str(value)) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", r"\|")


def number(value: float | int | None, digits: int = 4) -> str:
    """A number as a reader wants it: integers whole, reals to some decimals, a dash for what is not defined."""
    return _number(value, digits)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A table of ready-made cells; columns from `numbers_from` on are set flush right."""
    rules = ["---" if column < numbers_from else "---:" for column in range(len(header))]
    lines = [header, rules, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""Columns of a report: each is declared once, as the field of a row, and every table is made from the declarations.

Note [One declaration]
A column is a field of `GroupEnergy`, `StackEnergy` or `ReportSummary` made by `column(...)`. Its place in the class is
its place in every table; `shown` says in which. So a new column is two edits: its number is computed in
`energy/statistics.py` (or `energy/reference/score.py`), and declared in `group_energy.py` under the same name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

LEADING = "spread"
"""The column that a report is sorted by and a comparison leads with."""
TERMINAL_DIGITS = 4  # after the point, at most: a line of a terminal is short


class Shown(Flag):
    """Where a column is shown; the JSON of a report has every field."""

    NOWHERE = 0
    CSV = auto()
    """The table for programs: CSV and pandas."""
    PAGE = auto()
    TERMINAL = auto()
    CARD = auto()
    COMPARED = auto()
    """Both sides in the data of a comparison: JSON, CSV and pandas; of a summary, both sides of its numbers."""
    COMPARED_PAGE = auto()
    COMPARED_TERMINAL = auto()
    TABLES = CSV | PAGE | TERMINAL
    COMPARISONS = COMPARED | COMPARED_PAGE | COMPARED_TERMINAL


@dataclass(frozen=True)
class Column:
    """What every table knows of one field.

    Attributes:
        key: name of the field, in JSON and CSV too.
        label: heading of a page and a card.
        short: heading where space is short.
        digits: after the point; None for what is no fraction.
        help: one line on what it is.
        is_text: whether it is a text, and not a number.
        is_name: whether it is a dotted name.
        shown: where.
        on_request: whether the tables of people leave it out where no row has a value.
    """

    key: str
    label: str
    short: str
    digits: int | None
    help: str
    is_text: bool
    is_name: bool
    shown: Shown
    on_request: bool

    def of(self, row: Any) -> Any:
        """The value in a row; a tuple of numbers, such as a pair of rows, as a text."""
        value = getattr(row, self.key)
        return ", ".join(map(str, value)) if isinstance(value, tuple) else value

    @property
    def terminal_digits(self) -> int | None:
        return None if self.digits is None else min(self.digits, TERMINAL_DIGITS)


def column(
    shown: Shown,
    *,
    label: str | None = None,
    short: str | None = None,
    digits: int | None = None,
    help: str = "",
    is_text: bool = False,
    is_name: bool = False,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    repr: bool = True,
    on_request: bool = False,
) -> Any:
    """A dataclass field that is a column; without `label` its heading is its name."""
    about = {
        "label": label,
        "short": short,
        "digits": digits,
        "help": help,
        "is_text": is_text or is_name,
        "is_name": is_name,
        "shown": shown,
        "on_request": on_request,
    }
    made = {"default": default} if default_factory is dataclasses.MISSING else {"default_factory": default_factory}
    return dataclasses.field(**made, repr=repr, metadata={"column": about})


def columns(row_type: type, shown: Shown, rows: Iterable[Any] | None = None) -> list[Column]:
    """The columns of a row type that are shown there, in the order of its fields.

    Of `rows`, where they are given, a column that is made on request is shown only if one of them has it.
    """
    rows = None if rows is None else list(rows)
    found = []
    for field in dataclasses.fields(row_type):
        about = field.metadata.get("column")
        if about is not None and about["shown"] & shown:
            label = about["label"] or field.name.replace("_", " ")
            found.append(Column(field.name, **{**about, "label": label, "short": about["short"] or label}))
    if rows is not None:
        found = [each for each in found if not each.on_request or any(each.of(row) is not None for row in rows)]
    return found

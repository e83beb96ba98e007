"""Tables of a terminal, made from the columns that the rows of a report declare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from hf_mhe.cli.console import cell, plain_table
from hf_mhe.text import number as number_text

if TYPE_CHECKING:
    from rich.text import Text

    from hf_mhe.analysis import Comparison
    from hf_mhe.analysis.report.columns import Column


def table_of(row_type: type, rows: Iterable[object]) -> Table:
    """The rows of a report, with the columns that a terminal shows of them."""
    from hf_mhe.analysis.report.columns import Shown, columns

    rows = list(rows)
    shown = columns(row_type, Shown.TERMINAL, rows)
    table = plain_table()
    for column in shown:
        _add(table, column, column.short)
    for row in rows:
        table.add_row(*(_shown(column, row) for column in shown))
    return table


def comparison_table(comparison: Comparison) -> Table:
    """The groups that both sides have, most crowded after first: what names them, and each number of both sides."""
    from hf_mhe.analysis import GroupEnergy
    from hf_mhe.analysis.report.columns import LEADING, Shown, columns

    shown = columns(GroupEnergy, Shown.COMPARED_TERMINAL)
    table = plain_table()
    for column in shown:
        if column.shown & Shown.COMPARED:
            _add(table, column, f"{column.short} before")
            _add(table, column, "after")
            if column.key == LEADING:
                _add(table, column, "change")
        else:
            _add(table, column, column.short)
    for row in comparison.rows:
        cells: list[str | Text] = []
        for column in shown:
            if column.shown & Shown.COMPARED:
                cells += [_shown(column, row.before), _shown(column, row.after)]
                if column.key == LEADING:
                    cells.append("-" if row.spread_change is None else f"{row.spread_change:+.3f}")
            else:
                cells.append(_shown(column, row))
        table.add_row(*cells)
    return table


def number(value: float | None, digits: int) -> str:
    """A number for a terminal, in characters that every encoding has."""
    return number_text(value, digits, undefined="-", infinite="inf")


def _add(table: Table, column: Column, heading: str) -> None:
    if column.is_name:
        table.add_column(heading, overflow="fold")
    elif column.is_text:
        table.add_column(heading)
    else:
        table.add_column(heading, justify="right", no_wrap=True)


def _shown(column: Column, row: object) -> str | Text:
    value = column.of(row)
    if column.is_name:
        return cell(str(value))
    if column.terminal_digits is None:
        return "-" if value is None else str(value)
    return number(value, column.terminal_digits)

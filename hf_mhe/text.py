"""Text for people: what comes from somebody's files made fit to be shown, lists cut short, numbers, errors."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

# Control characters, separators of lines and of paragraphs, and halves of characters (bytes of a path that are none).
_UNSEEN = ("Cc", "Zl", "Zp", "Cs")
_DIRECTIONS = frozenset("\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def escaped(text: str) -> str:
    r"""The text with every character that is not to be seen as its escape: `\n`, `\x1b`, `\udcff`, `\u202e`.

    These would break a line in two, give orders to a terminal, reverse the direction of what follows, or not be taken
    by a file or a figure at all.
    """
    return "".join(_escape(character) if _is_unseen(character) else character for character in text)


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN or character in _DIRECTIONS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def one_line(message: str | BaseException) -> str:
    """A text, or what an exception says, without its line breaks; an exception that says nothing is named."""
    line = " ".join(str(message).split())
    return line or (type(message).__name__ if isinstance(message, BaseException) else "")


def listed(names: Iterable[str], most: int = 5) -> str:
    """A few names in a row, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def number(
    value: float | int | None,
    digits: int = 4,
    *,
    undefined: str = "–",
    infinite: str | None = "∞",
    thousands: bool = False,
) -> str:
    """A number as a reader wants it: integers whole, reals to `digits` decimals.

    `undefined` stands for None and NaN, `infinite` for an infinity (None: it counts as undefined); `thousands` sets
    groups of three digits apart by commas. A real of ten millions or more is shown by its power of ten.
    """
    if value is None or math.isnan(value) or (math.isinf(value) and infinite is None):
        return undefined
    if math.isinf(value):
        return f"{infinite}" if value > 0 else f"-{infinite}"
    comma = "," if thousands else ""
    if isinstance(value, int):
        return f"{value:{comma}}"
    if abs(value) >= 1e7:
        return f"{value:.2e}"
    # Adding zero takes the sign off a number that rounds to none.
    return f"{round(value, digits) + 0.0:{comma}.{digits}f}"

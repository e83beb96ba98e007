"""Text that comes from somebody's files, made fit to be shown."""

from __future__ import annotations

import unicodedata

# Control characters, separators of lines and of paragraphs, and halves of characters (bytes of a path that are none).
_UNSEEN = ("Cc", "Zl", "Zp", "Cs")
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


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

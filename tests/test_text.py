"""Texts for people: one line, short lists, numbers."""

from __future__ import annotations

import math
import unicodedata

import pytest

from hf_mhe.text import escaped, listed, number, one_line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("two\n  lines\t", "two lines"),
        ("", ""),
        (ValueError("a\r\nb"), "a b"),
        (KeyError(), "KeyError"),
        (ValueError("\n"), "ValueError"),
    ],
)
def test_one_line(said: str | Exception, line: str) -> None:
    """If this fails, a library's error breaks our one line in two, or leaves it without a reason."""
    assert one_line(said) == line


@pytest.mark.parametrize(
    "character", [chr(code) for code in (*range(0x20), 0x7F, 0x9B, 0x61C, 0x2028, 0x2029, 0xDC80)]
)
def test_what_is_not_to_be_seen_is_escaped(character: str) -> None:
    """If this fails, a name out of somebody's file gives orders to a terminal, or turns a line around."""
    assert escaped(f"a{character}b") == "a" + character.encode("unicode_escape").decode() + "b"


def test_every_mark_of_direction_is_escaped() -> None:
    """If this fails, a name reads in another order than it is written in."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = [chr(code) for code in range(0x3000) if unicodedata.bidirectional(chr(code)) in turning]
    marks += ["\u200e", "\u200f", "\u061c"]  # marks whose class is that of a letter
    assert len(marks) == 12
    assert all(escaped(mark) == f"\\u{ord(mark):04x}" for mark in marks)
    assert escaped("日本 é 🙂 <b>") == "日本 é 🙂 <b>"


@pytest.mark.parametrize("count", range(8))
def test_a_list_is_cut_short(count: int) -> None:
    """If this fails, an error about ten thousand tensors fills the screen, or does not say that there are more."""
    names = [f"n{i}" for i in range(count)]
    shown = listed(iter(names), 3)
    assert [name for name in names if name in shown] == names[:3]
    assert (f" and {count - 3} more" in shown) == (count > 3)
    assert listed([]) == ""


@pytest.mark.parametrize(
    ("value", "plain", "grouped"),
    [
        (None, "–", "–"),
        (math.nan, "–", "–"),
        (1234567, "1234567", "1,234,567"),
        (1234.5678, "1234.57", "1,234.57"),
        (-0.001, "0.00", "0.00"),
        (-1.5, "-1.50", "-1.50"),
        (math.inf, "∞", "∞"),
        (-math.inf, "-∞", "-∞"),
    ],
)
def test_a_number(value: float | None, plain: str, grouped: str) -> None:
    """If this fails, a table shows a count with decimals, a minus before zero, or `nan` where nothing is defined."""
    assert number(value, 2) == plain
    assert number(value, 2, thousands=True) == grouped
    finite = value is not None and math.isfinite(value)
    assert number(value, 2, undefined="-", infinite=None) == (plain if finite else "-")

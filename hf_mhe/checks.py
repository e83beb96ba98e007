"""Options and numbers that callers pass in: refused by name, with what would be right, in one place for all rooms."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

from hf_mhe.errors import MHEError


def check_option(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a value that is not one of `allowed`, naming them all."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise MHEError(f"{name} must be one of {choices}; got {value!r}")


def check_number(
    name: str, value: object, *, above: float | None = None, at_most: float | None = None, right: str | None = None
) -> None:
    """Refuse what is not a finite real number >= 0, or > `above` where it is given, and <= `at_most`.

    True and False are no numbers here: a config file that says `true` never means 1.

    Args:
        name: what the caller calls it.
        value: what came.
        above: a limit that the number may not touch, in place of 0, which it may.
        at_most: the largest number.
        right: what the number must be, in words, where a sentence about the limits says too little.

    Raises:
        MHEError: it is something else.
    """
    # SymFloat and SymInt are what torch.compile hands over where it does not want to compile for each number anew.
    number: Any = value
    if isinstance(value, (Real, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool):
        # A NaN fails every comparison.
        enough = number >= 0 if above is None else number > above
        if enough and (number < math.inf if at_most is None else number <= at_most):
            return
    if right is None:
        least = ">= 0" if above is None else f"> {above:g}"
        right = f"a finite number {least}" if at_most is None else f"a number {least} and <= {at_most:g}"
    raise MHEError(f"{name} must be {right}; got {value!r}")


def check_integer(
    name: str, value: object, *, at_least: int, at_most: int | None = None, right: str | None = None
) -> int:
    """The value as an int, whatever kind of integer it is; refuse what is none from `at_least` to `at_most`.

    Integers of numpy and torch are integers; True, False and 2.0 are none.

    Raises:
        MHEError: it is something else; `right` says in words what it must be, in place of the limits.
    """
    number: int | None = None
    if not isinstance(value, bool):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except (TypeError, RuntimeError):  # RuntimeError: a tensor without values
            number = None
    if number is None or number < at_least or (at_most is not None and number > at_most):
        if right is None:
            right = f"an integer >= {at_least}" if at_most is None else f"an integer from {at_least} to {at_most}"
        raise MHEError(f"{name} must be {right}; got {value!r}")
    return number

"""What callers pass in: numbers and options, checked in one place."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from hf_mhe.checks import check_integer, check_number, check_option
from hf_mhe.errors import MHEError


@pytest.mark.parametrize("value", [0, 0.0, 2, 1e300, np.float32(1), np.int64(3), Fraction(1, 3)])
def test_numbers_of_every_kind_are_taken(value: float) -> None:
    """If this failed, a sweep over an array of numbers would be refused."""
    check_number("s", value)
    if value:
        check_number("s", value, above=0)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, True, "2", None, 1j, [1.0], torch.ones(2)])
def test_what_is_no_number_is_named(value: object) -> None:
    """If this failed, a mistake in a config would train with a number that nobody meant."""
    with pytest.raises(MHEError, match=r"^s must be a finite number >= 0; got "):
        check_number("s", value)
    with pytest.raises(MHEError, match=r"^s must be a finite number > 0; got "):
        check_number("s", value, above=0)


def test_limits_of_a_number() -> None:
    """If this failed, a limit itself would be on the wrong side of it."""
    check_number("share", 1, above=0, at_most=1)
    for value in (0, 1.0000001, math.inf, math.nan):
        with pytest.raises(MHEError, match=r"share must be a number > 0 and <= 1; got "):
            check_number("share", value, above=0, at_most=1)
    with pytest.raises(MHEError, match=r"share must be in \(0, 1\]; got 2"):
        check_number("share", 2, above=0, at_most=1, right="in (0, 1]")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers_of_every_kind_become_ints(value: object) -> None:
    """If this failed, a seed out of an array would be refused here, or by the generator that it is handed to."""
    assert type(check_integer("seed", value, at_least=0)) is int


@pytest.mark.parametrize("value", [2.0, -1, True, np.bool_(True), "3", None, math.nan, torch.ones(2)])
def test_what_is_no_integer_is_named(value: object) -> None:
    """If this failed, half a step, or a switch, would count as a number of steps."""
    with pytest.raises(MHEError, match=r"^steps must be an integer >= 0; got "):
        check_integer("steps", value, at_least=0)
    with pytest.raises(MHEError, match=r"^steps must be an integer from 3 to 4; got "):
        check_integer("steps", value, at_least=3, at_most=4)


def test_options_are_listed() -> None:
    """If this failed, a misspelt option would not be told from the right ones."""
    check_option("space", "half", ("full", "half"))
    for value in ("Half", "", None, ["half"]):
        with pytest.raises(MHEError, match=r"space must be one of 'full', 'half'; got "):
            check_option("space", value, ("full", "half"))

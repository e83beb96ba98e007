"""What DeepSpeed can do and MHE does not support is refused by name, with the remedy, in two real processes."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import pytest

from tests.engines.deepspeed_refusals_worker import CASES
from tests.engines.launch import run_in_processes

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="needs deepspeed (DS_BUILD_OPS=0 pip install deepspeed)"
    ),
]


@functools.cache
def two_processes() -> dict[str, object]:
    return dict(run_in_processes([], 2, worker="tests.engines.deepspeed_refusals_worker"))


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name(case: str) -> None:
    """The parameters would be trained with another lambda, and nobody would know."""
    assert CASES[case][1] in str(two_processes()[case])

"""The examples in the docstrings of public functions, run as they stand."""

from __future__ import annotations

import doctest

import pytest

from hf_mhe import energy

FINDER = doctest.DocTestFinder(recurse=False)
EXAMPLES = {
    name: test for name in energy.__all__ for test in FINDER.find(getattr(energy, name), name) if test.examples
}
# Which functions a newcomer calls first.
EXPECTED = {
    "energy_lower_bound",
    "expected_energy",
    "hyperspherical_energy",
    "minimize_energy",
    "rotating_share",
    "sampled_energy",
}


def test_the_first_functions_have_examples() -> None:
    """If this failed, the functions that a newcomer calls first would come without one line to copy."""
    assert set(EXAMPLES) >= EXPECTED


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str) -> None:
    """If this failed, the first lines that a newcomer copies would stop, or print something else."""
    test = EXAMPLES[name]
    assert any(example.want for example in test.examples)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append, clear_globs=False)
    assert result.failed == 0, "".join(said)

"""The examples in the docstrings of public functions and classes, run as they stand."""

from __future__ import annotations

import doctest

import pytest

import hf_mhe
from hf_mhe import analysis, energy, hub, neurons, training

FINDER = doctest.DocTestFinder(recurse=False)
ROOMS = (hf_mhe, energy, neurons, analysis, training, hub)
PUBLIC = {name: getattr(room, name) for room in ROOMS for name in room.__all__ if not name.startswith("_")}
_CALLABLE = {name: value for name, value in PUBLIC.items() if callable(value)}
EXAMPLES = {
    name: test
    for name, value in PUBLIC.items()
    if callable(value)
    for test in FINDER.find(value, name)
    if test.examples
}
# Which functions a newcomer calls first.
EXPECTED = {
    "analyze",
    "coverage",
    "energy_lower_bound",
    "equivalent_dimension",
    "expected_energy",
    "hyperspherical_energy",
    "minimize_energy",
    "neuron_groups",
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

"""The examples in the docstrings of this room's public functions, run as they stand."""

from __future__ import annotations

import doctest

import pytest

from hf_mhe import neurons

_FINDER = doctest.DocTestFinder(recurse=False)


@pytest.mark.parametrize("name", ["coverage", "neuron_groups"])
def test_an_example_prints_what_it_says(name: str) -> None:
    """If this failed, the first lines that a newcomer copies would stop, or print something else."""
    (test,) = _FINDER.find(getattr(neurons, name), name)
    assert any(example.want for example in test.examples)
    said: list[str] = []
    result = doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
    assert result.failed == 0, "".join(said)

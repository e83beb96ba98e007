"""Which tests are slow: what the marker `slow` covers, and a warning of a case that lacks it.

Note [What counts as slow]
A case is slow when its call takes more than a second on an idle machine. A busy machine would warn of half the suite
if that were measured by the clock alone. So the processor time of the process and of the processes that it waited for
counts too, and the smaller of the two. Rejected: the clock alone, for that reason; processor time alone, which several
threads multiply. It is a warning in the summary and never a failure: no machine is the measure of another.

Note [Quick cases]
A property over a hundred cases of a twentieth of a second each is slow too, and no case of it is. Its test says how
many of them stay with `quick_cases(n)`: those are spread evenly over all, both ends among them, and the others are
slow. Rejected: to mark the whole test, for then nobody would see in the quick loop that it fails.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

import pytest

THRESHOLD = 1.0
"""Seconds of one call, without its fixtures."""
LONG = frozenset({"engines", "matrix", "recipes", "story"})
"""Markers of what the default command leaves out. Their tests are slow too, so `-m "not slow"` leaves them out."""
_LISTED = 30
_UNMARKED = pytest.StashKey[dict[str, float]]()
_SECONDS = "processor_seconds"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_UNMARKED] = {}
    config.pluginmanager.register(_Reports(config), "slow-reports")


@pytest.hookimpl(tryfirst=True)  # before pytest applies `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    many: dict[tuple[object, ...], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if any(mark.name in LONG for mark in item.iter_markers()):
            item.add_marker("slow")
        if (mark := item.get_closest_marker("quick_cases")) and not item.get_closest_marker("slow"):
            many[(*item.listchain()[1:-1], item.originalname, *mark.args)].append(item)
    for (*_, quick), cases in many.items():
        stay = {round(place * (len(cases) - 1) / max(quick - 1, 1)) for place in range(quick)}
        for place, case in enumerate(cases):
            if place not in stay:
                case.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    start = _processor_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append((_SECONDS, _processor_seconds() - start))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    unmarked = config.stash[_UNMARKED]
    if not unmarked:
        return
    terminalreporter.section(f"over {THRESHOLD:g} s and not marked slow")
    for case, seconds in sorted(unmarked.items(), key=lambda item: -item[1])[:_LISTED]:
        terminalreporter.write_line(f"{seconds:5.1f} s  {case}")
    if len(unmarked) > _LISTED:
        terminalreporter.write_line(f"and {len(unmarked) - _LISTED} more")


class _Reports:
    """Sees the reports of every process of the run: xdist sends them to the one that prints the summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._unmarked = config.stash[_UNMARKED]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or "slow" in report.keywords:
            return
        seconds = min(report.duration, dict(report.user_properties).get(_SECONDS, report.duration))
        if seconds > THRESHOLD:
            self._unmarked[report.nodeid] = seconds


def _processor_seconds() -> float:
    return sum(os.times()[:4])

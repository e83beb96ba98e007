"""The table of the matrix, printed at the end of a run of pytest, and the share of types that must be built in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

# Of the types of transformers 5.24, 94 % build with the optional libraries and 90 % without; a change of theirs that
# keeps the tests from building models must not pass for a matrix without faults.
LEAST_BUILT = 0.85
PROPERTY = "matrix"


def unbuilt(rows: list[dict[str, Any]], expected: int) -> str | None:
    """What is wrong where a whole run built too few of the expected types; None where it did not, or ran a part."""
    built = sum(bool(row["built"]) for row in rows)
    if len(rows) < expected or built >= LEAST_BUILT * expected:
        return None
    return f"only {built} of {expected} model types were built, fewer than {LEAST_BUILT:.0%}"


def lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Type, classes built, groups by role, kinds; below it what was skipped and what could not be built, with why."""
    yield f"{'model type':<36}{'classes':>8}{'hidden':>8}{'output':>8}{'embed.':>8}  kinds"
    for row in sorted(rows, key=lambda row: row["model_type"]):
        if row["built"]:
            counts = "".join(f"{row['groups'].get(role, 0):>8}" for role in ("hidden", "output", "embedding"))
            yield f"{row['model_type']:<36}{len(row['built']):>8}{counts}  {' '.join(row['kinds'])}"
        else:
            yield f"{row['model_type']:<36} not built"
        for reason, times in row["skipped"].items():
            yield f"    {times} skipped: {reason}"
        for reason in sorted(set(row["missing"].values())):
            classes = [cls for cls, said in row["missing"].items() if said == reason]
            yield f"    {', '.join(classes)} not built: {reason}"


def _rows(config: pytest.Config) -> tuple[list[dict[str, Any]], int]:
    """What the tests of the matrix recorded, and how many types there are; in a worker of xdist nothing."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return [], 0
    reports = [report for reports in reporter.stats.values() for report in reports]
    found = [
        value
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    return [row for row, _ in found], max((expected for _, expected in found), default=0)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    rows, expected = _rows(session.config)
    if rows and unbuilt(rows, expected):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows, expected = _rows(config)
    if not rows:
        return
    terminalreporter.section("neuron groups of the model types")
    for line in lines(rows):
        terminalreporter.write_line(line)
    built = sum(bool(row["built"]) for row in rows)
    classes = sum(len(row["built"]) for row in rows)
    terminalreporter.write_line(f"{built} of {len(rows)} model types built, {classes} classes")
    if (fault := unbuilt(rows, expected)) is not None:
        terminalreporter.write_line(f"FAILED {fault}", red=True)

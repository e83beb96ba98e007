"""What trackers have on their disks."""

from __future__ import annotations

from pathlib import Path

import pytest

Curve = list[tuple[int, float]]


def scalars(folder: Path) -> dict[str, Curve]:
    """Every curve in TensorBoard's event files below a folder: (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, Curve] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return curves


def close(found: Curve, expected: Curve) -> bool:
    return [step for step, _ in found] == [step for step, _ in expected] and [value for _, value in found] == (
        pytest.approx([value for _, value in expected], rel=1e-5)
    )

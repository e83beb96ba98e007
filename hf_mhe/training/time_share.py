"""How much of a training's time measurements take, and whether there is room for one more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class TimeShare:
    """The time since it was made, and what of it was spent on measurements.

    Args:
        limit: the share of the time that measurements may take; None sets no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._begun = time.perf_counter()
        self._spent = 0.0
        self._slowest = 0.0

    @property
    def taken(self) -> float:
        """The share of the time that the measurements took up to now."""
        elapsed = time.perf_counter() - self._begun
        return self._spent / elapsed if elapsed > 0 else 0.0

    def has_room(self) -> bool:
        """Whether one more measurement stays within the limit, and with it the one at the end, which comes anyway.

        Each is expected to take as long as the slowest did, for what else the machine does is not known beforehand.
        """
        elapsed = time.perf_counter() - self._begun
        return self._limit is None or self._spent + 2 * self._slowest <= self._limit * elapsed

    @contextmanager
    def measurement(self, device: torch.device) -> Iterator[None]:
        """What runs within this context is a measurement; what the device still has to do before it is none."""
        torch.get_device_module(device).synchronize()
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            self._spent += took
            self._slowest = max(self._slowest, took)

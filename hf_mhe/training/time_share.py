"""How much of a training's time measurements take, and whether there is room for one more.

Note [What can be promised]
What a measurement will take is not known beforehand: other programs share the machine, and the first one also loads
and compiles. It is expected to take as long as the slowest did, and the last, which comes whatever it costs, twice as
long. So there is room for one now when what was spent and three times the slowest are within the limit. Then the limit
holds at the end of the training as long as no measurement takes more than 1.5 times as long as another, and with
measurements up to three times as long as others it is exceeded by one of them at most. Rejected: to expect of the last
what is expected of the others, which was exceeded by the last one on a machine under load; and to leave the last one
out where it does not fit, for the end of a training is what is looked at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_NOW, _LAST = 1, 2  # in times the slowest measurement; see Note [What can be promised]


class TimeShare:
    """The time since it was made, and what of it was spent on measurements.

    Args:
        limit: the share of the time that measurements may take; None sets no limit.
        clock: gives the time in seconds.
    """

    def __init__(self, limit: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit, self._clock = limit, clock
        self._begun = clock()
        self._spent = 0.0
        self._slowest = 0.0

    @property
    def taken(self) -> float:
        """The share of the time that the measurements took up to now."""
        elapsed = self._clock() - self._begun
        return self._spent / elapsed if elapsed > 0 else 0.0

    def has_room(self) -> bool:
        """Whether one more measurement stays within the limit, and with it the one at the end, which comes anyway."""
        elapsed = self._clock() - self._begun
        return self._limit is None or self._spent + (_NOW + _LAST) * self._slowest <= self._limit * elapsed

    @contextmanager
    def measurement(self, device: torch.device) -> Iterator[None]:
        """What runs within this context is a measurement; what the device still has to do before it is none."""
        torch.get_device_module(device).synchronize()
        begun = self._clock()
        try:
            yield
        finally:
            took = self._clock() - begun
            self._spent += took
            self._slowest = max(self._slowest, took)

"""A clock that stands still until a test advances it."""

from __future__ import annotations

import time
from typing import Final

NS: Final = 1_000_000_000
START_S: Final = 1000.0


class FakeClock:
    """Seconds that pass only when somebody says so; never backwards."""

    def __init__(self) -> None:
        self._now_s = START_S
        self._wall_ns = time.time_ns()

    def __call__(self) -> float:
        """Return the time, as time.monotonic does."""
        return self._now_s

    def ns(self) -> int:
        """Return the time in nanoseconds, as time.monotonic_ns does."""
        return round(self._now_s * NS)

    def wall_ns(self) -> int:
        """Return the wall clock: what it was at the beginning, and what has passed since."""
        return self._wall_ns + round((self._now_s - START_S) * NS)

    def set(self, now_s: float) -> None:
        """Make it that late.  Raises: ValueError if it is later already."""
        if now_s < self._now_s:
            raise ValueError(f"a clock does not go back, now={self._now_s}, wanted={now_s}")
        self._now_s = now_s

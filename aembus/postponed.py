"""What a member does later: the next attempt of jobs that failed.  No clock of its own."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable


class Postponed:
    """Actions and when they are due; of one thread.

    entries: what waits, as a heap.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, due: float, action: Callable[[], None]) -> None:
        """Have `action` done at `due`, or later."""
        heapq.heappush(self.entries, (due, next(self._numbers), action))

    def pop_due(self, now: float) -> Callable[[], None] | None:
        """Take out the action that is due for longest, if one is due."""
        return heapq.heappop(self.entries)[2] if self.is_due(now) else None

    def is_due(self, now: float) -> bool:
        """Say whether anything is due."""
        return bool(self.entries) and self.entries[0][0] <= now

    def due_in(self, now: float) -> float:
        """Return in how long something is due: infinity if nothing waits."""
        return max(self.entries[0][0] - now, 0.0) if self.entries else math.inf


def pause(backoff_s: float, failures: int, longest_s: float) -> float:
    """Return how long to wait after so many failures: doubling, at most `longest_s` seconds."""
    return float(min(backoff_s * 2.0 ** min(failures - 1, 1000), longest_s))

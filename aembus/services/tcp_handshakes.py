"""TLS handshakes of peers that connect: how many are under way at once, and whose turn it is.

One for a TCP service, used in its event loop.  A peer costs 46 KiB and up to 0.3 ms of signing
before anything is known of it, so both are bounded:

- at most `HANDSHAKES_MAX` are under way.  Beyond, newcomers wait in the kernel's queue; but one
  that has been under way for `PATIENCE_S` makes room for them, since who means well needs a few
  round trips.  So who attacks by silence delays others by about a second, whatever the time-out is;
- one goes a step further in each turn of the event loop, in the order in which their bytes came:
  everybody else waits for one step at a time, and not for as many as have come at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

HANDSHAKES_MAX: Final = 1000
PATIENCE_S: Final = 1.0


class Shaking(Protocol):
    """A connection whose handshake is under way."""

    def refuse(self, counted_as: str, reason: str) -> None:
        """Close it."""


class Handshakes:
    """All handshakes that are under way.

    Args:
        loop: whose turns they take.
        handshakes_max: how many at once.
        patience_s: after so long one makes room for another one, if there are as many.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handshakes_max: int = HANDSHAKES_MAX,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._loop = loop
        self._handshakes_max = handshakes_max
        self._patience_s = patience_s
        self._began: dict[Shaking, float] = {}  # oldest first
        self._steps: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self._began)

    def has_room(self) -> bool:
        """Say whether another one may begin; the oldest makes room for it if that took long."""
        if len(self._began) < self._handshakes_max:
            return True
        oldest, began = next(iter(self._began.items()))
        if self._loop.time() - began < self._patience_s:
            return False
        self.end(oldest)
        oldest.refuse("handshakes_dropped", "others want to begin a handshake")
        return True

    def begin(self, connection: Shaking) -> None:
        """Count one in."""
        self._began[connection] = self._loop.time()

    def end(self, connection: Shaking) -> None:
        """Count one out: it is over, or its connection is.  Idempotent."""
        self._began.pop(connection, None)

    def take_turn(self, step: Callable[[], None]) -> None:
        """Do something when it is its turn."""
        self._steps.append(step)
        if len(self._steps) == 1:
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._steps:
            if len(self._steps) > 1:
                self._loop.call_soon(self._go_on)
            self._steps.popleft()()

    def close(self) -> None:
        """Let nobody have another turn."""
        self._steps.clear()

"""Resets that the event loop keeps to itself: looked for.

uvloop gives a socket up at the first event that says "error", after one call of its reader.  Where
bytes and the peer's reset are found in one event, that call takes the bytes, and nothing else is
ever heard of the connection.  asyncio's own loop says it again, so there is nothing to look for.

Used by the TCP service, in its event loop.  Guarantees: a connection that is read, and was reset,
is closed within `LOOK_S` for each `LOOKS_AT_ONCE` connections that there are; each look is a system
call of half a microsecond, and no message costs anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from .tcp_stream import Stream

LOOK_S: Final = 0.5
LOOKS_AT_ONCE: Final = 1000


class Resettable(Protocol):
    """A connection."""

    stream: Stream


class Resets:
    """Looks at all connections of a service, some at a time.

    Args:
        loop: whose readers may not be told.
        connections: by number; the service's own, and as it is at each look.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connections: Mapping[int, Resettable]
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._is_needed = not isinstance(loop, asyncio.BaseEventLoop)
        self._left: list[int] = []  # of this round
        self._next: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look for as long as there are connections.  Idempotent."""
        if self._is_needed and self._next is None:
            self._next = self._loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Look no more."""
        self._is_needed = False
        if self._next is not None:
            self._next.cancel()

    def _look(self) -> None:
        self._next = None
        if not self._left:
            self._left = list(self._connections)
        numbers, self._left = self._left[:LOOKS_AT_ONCE], self._left[LOOKS_AT_ONCE:]
        for number in numbers:
            if (connection := self._connections.get(number)) is not None:
                connection.stream.look_for_reset()
        if self._connections:
            self.begin()

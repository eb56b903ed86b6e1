"""Looks at each connection when it may be overdue, by one timer of the event loop for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from .tcp_limits import Deadlines

NS: Final = 1_000_000_000
LOOK_S_MIN: Final = 0.02  # between two looks at who is overdue


class Overdue:
    """When to look at which connection.

    Args:
        loop: whose timers are used.
        now_ns: the clock by which times are told.
        check: called with a connection's number and the time now, when its time has come; it asks
            for the next look by itself.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int],
        check: Callable[[int, int], None],
    ) -> None:
        self._loop = loop
        self._now_ns = now_ns
        self._check = check
        self._deadlines = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    def look_at(self, number: int, at_ns: int) -> None:
        """Look at a connection no later than at `at_ns`, and a little after that."""
        self._deadlines.look_at(number, at_ns)
        self._set_timer(at_ns)

    def forget(self, number: int) -> None:
        """Do not look at a connection any more."""
        self._deadlines.forget(number)

    def stop(self) -> None:
        """Look at nobody until somebody asks for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, at_ns: int) -> None:
        if self._timer is not None:
            if self._timer_ns <= at_ns:
                return
            self._timer.cancel()
        self._timer_ns = at_ns
        delay_s = max((at_ns - self._now_ns()) / NS, LOOK_S_MIN)
        self._timer = self._loop.call_later(delay_s, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        now_ns = self._now_ns()
        for number in self._deadlines.take_due(now_ns):
            self._check(number, now_ns)
        next_ns = self._deadlines.next_ns()
        if next_ns is not None:
            self._set_timer(next_ns)

"""What reaches a supervisor from outside of its bus: signals, steps of the wall clock, an end.

Each is only passed on: what becomes of it is for the supervisor to say.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger("aembus")

CLOCK_CHECK_S: Final = 0.5
CLOCK_STEP_NS: Final = 50_000_000
AGAIN_S: Final = 1.0  # a second signal within this time is the same one


def on_stop_signals(stop: Callable[[str], None], kill: Callable[[], None]) -> None:
    """Listen to SIGINT and SIGTERM, in the running loop.

    Args:
        stop: called with the signal's name.
        kill: called before that when it is not the first one: who stops should be quick.
    """
    first_at = 0.0

    def on_signal(number: signal.Signals) -> None:
        nonlocal first_at
        now = time.monotonic()
        if first_at and now - first_at > AGAIN_S:
            kill()
        first_at = now
        stop(number.name)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)


async def watch_clock(on_step: Callable[[], None]) -> None:
    """Call `on_step` whenever the wall clock was set; never returns."""
    offset = time.time_ns() - time.monotonic_ns()
    while True:
        await asyncio.sleep(CLOCK_CHECK_S)
        now = time.time_ns() - time.monotonic_ns()
        if abs(now - offset) > CLOCK_STEP_NS:
            log.warning("the wall clock was set, by %.3f s", (now - offset) / 1e9)
            on_step()
        offset = now


async def standard_input_ended() -> None:
    """Return when whoever holds the other end of standard input has let go of it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())

"""Rejoining: how a bus object with reconnect=True comes to its bus's next supervisor."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from aembus.errors import AembusError

log = logging.getLogger("aembus")

PAUSE_FIRST_S: Final = 0.02
PAUSE_MAX_S: Final = 1.0


class Rejoining:
    """A thread that joins again, as often as the supervisor goes.

    Args:
        bus: the bus's name.
        join: one attempt; raises AembusError or OSError if there is no supervisor yet.
    """

    def __init__(self, bus: str, join: Callable[[], None]) -> None:
        self._bus = bus
        self._join = join
        self._wanted = threading.Event()
        self._joined = threading.Event()
        self._joined.set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="aembus-rejoin", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """The supervisor is gone: look for the next one."""
        self._wanted.set()  # first: see `_work`
        self._joined.clear()

    def wait(self, timeout_s: float) -> bool:
        """Wait until joined, for so long at most; say whether it is."""
        return self._joined.wait(timeout_s)

    def _work(self) -> None:
        while not self._closed.is_set():
            self._wanted.wait()
            if self._try_until_joined() and not self._wanted.is_set():
                self._joined.set()
                if self._wanted.is_set():  # gone again, just before
                    self._joined.clear()

    def _try_until_joined(self) -> bool:
        pause_s = PAUSE_FIRST_S
        told = ""
        while not self._closed.is_set():
            self._wanted.clear()  # set again from now on: what is joined here has gone
            try:
                self._join()
            except (AembusError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    log.info("bus %r cannot be joined yet: %s", self._bus, error)
            except Exception:
                log.exception("bus %r was left again: its on_reconnect raised", self._bus)
            else:
                log.info("bus %r is joined again", self._bus)
                return True
            self._closed.wait(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)
        return False

    def close(self) -> None:
        """Look no more.  Waits for an attempt that is under way, unless called by it."""
        self._closed.set()
        self._wanted.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

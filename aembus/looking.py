"""Looking for a moment before sleeping: a sleep, a post and a wake-up cost more than the moment.

Used by one thread at a time, for what another process is about to do.  Each look gives others the
core.  Where looking is in vain it is done less often: many processes on one core would take it from
the one that they wait for, and an idle one would not rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

SKIPPED_MAX: Final = 64
WAKE_UP_S: Final = 50e-6  # about what one costs: who waits for jobs or answers looks for so long


class Looking:
    """Looks for something for `moment_s` at most, and remembers whether that paid."""

    def __init__(self, moment_s: float) -> None:
        self._moment_s = moment_s
        self._to_skip = 0
        self._skip_next = 1
        self.took_s = 0.0  # the last time that it was found

    def look(self, found: Callable[[], bool]) -> bool:
        """Say whether `found()` became true within the moment, or a little later.

        Later it may be if another process had the core meanwhile.  That counts as in vain, unless
        `was_worth` is called.
        """
        if not self.may_look():
            return False
        began = time.monotonic()
        while not (come := found()):
            if time.monotonic() - began >= self._moment_s:
                break
            os.sched_yield()
        self.took_s = time.monotonic() - began
        if self.took_s < self._moment_s:
            self._skip_next = 1
        else:
            self.was_in_vain()
        return come

    def may_look(self) -> bool:
        """Say whether to look now: for who does it by other means, and then says how it went."""
        if self._to_skip > 0:
            self._to_skip -= 1
            return False
        return True

    def was_in_vain(self) -> None:
        """Look less often than until now."""
        self._to_skip = self._skip_next
        self._skip_next = min(2 * self._skip_next, SKIPPED_MAX)

    def was_worth(self) -> None:
        """Look again next time, however long it took this time."""
        self._to_skip = 0
        self._skip_next = 1

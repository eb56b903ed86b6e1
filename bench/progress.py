"""A line on the standard error stream that says what is being measured."""

from __future__ import annotations

import sys
import time


class Progress:
    """Overwrites its line on a terminal; elsewhere it writes a line now and then."""

    def __init__(self, steps: int) -> None:
        self._steps = max(1, steps)
        self._done = 0
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._said_at = float("-inf")

    def step(self, what: str) -> None:
        """Say that the next step is `what`."""
        self._say(what)
        self._done += 1

    def say(self, what: str) -> None:
        """Say what goes on, between two steps."""
        self._say(what)

    def _say(self, what: str) -> None:
        now = time.monotonic()
        passed = now - self._began
        share = min(1.0, self._done / self._steps)
        line = f"{share:4.0%}  {passed // 60:.0f}:{passed % 60:02.0f}  {what}"
        if self._terminal:
            sys.stderr.write(f"\r\033[K{line}")
            sys.stderr.flush()
        elif now - self._said_at >= 10:
            self._said_at = now
            print(line, file=sys.stderr)

    def clear(self) -> None:
        """Take the line away, so that something else can be written."""
        if self._terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
